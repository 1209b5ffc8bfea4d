"""A replica as ranks that work on the same steps: the first one is the engine's StepModel, the others serve it.

    first: launch ──hidden──► serving ──hidden──► ... ──hidden──► last: draw
      │      ▲                                                      │
      │      └──────────────────────── tokens ──────────────────────┘
      └─steps─► serving ──hidden──► serving ──hidden──► ...

Stages follow one another. Where a stage is several ranks that share its tensors, each of them is in a chain of
its own, from shard to shard of the same number: their hidden states are equal, so that nothing has to be told
within a stage but what the model itself adds up. The first rank tells the other chains the steps, and its own
chain alone draws. How many groups are in flight, and when each goes on, is the engine's: it makes the schedule.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from launcher.measure.device import Timer, timer
from launcher.measure.spans import Recorder
from launcher.model.gang import Gang
from launcher.model.group import GroupTimer, TensorGroup
from launcher.model.link import ENVELOPE, Inbox, Outbox, Peer, Side
from launcher.model.local import Runner, Tokens
from launcher.model.message import STEPS_FORM, Form, Message, announce, answer, answered, stop
from launcher.model.sampling import outcome
from launcher.model.step import Step
from launcher.plan.plan import Batch

HIDDEN, TOKENS, STEPS = 1, 2, 3  # tags: two ranks may be neighbours in several ways
AHEAD = 2  # messages received while the one before is computed on


@dataclass(frozen=True)
class Chain:
    """The ranks of one replica in the order of its stages and their shards, this one's place among them, and what
    they pass on. ``group`` are the ranks that share this one's stage, None where it is alone in it."""

    gang: Gang
    ranks: list[int]
    batch: Batch
    form: Form
    group: TensorGroup | None = None

    @property
    def width(self) -> int:
        """Shards per stage."""
        return len(self.group) if self.group else 1

    @property
    def stages(self) -> int:
        return len(self.ranks) // self.width

    @property
    def place(self) -> int:
        return self.ranks.index(self.gang.rank)

    @property
    def stage(self) -> int:
        return self.place // self.width

    @property
    def first(self) -> bool:
        return self.stage == 0

    @property
    def last(self) -> bool:
        return self.stage == self.stages - 1

    @property
    def draws(self) -> bool:
        """Whether this rank makes tokens of the logits: all of the last stage have them, one is enough."""
        return self.last and self.place % self.width == 0

    @property
    def incoming(self) -> Form:
        """The form of what a serving rank receives."""
        return STEPS_FORM if self.first else self.form

    def inbox(self, side: Side) -> Inbox:
        """Hidden states from the stage before, or steps from the first rank; on that one, tokens from the last stage."""
        if self.place == 0:
            return self.ends(side)[0]
        tag, of = (STEPS, 0) if self.first else (HIDDEN, self.place - self.width)
        return Inbox(side, self._peer(of, tag))

    def outbox(self, side: Side) -> Outbox:
        """To the next stage; on the last one, to the first rank. A group has one step in flight."""
        tag, to = (TOKENS, 0) if self.last else (HIDDEN, self.place + self.width)
        return Outbox(side, self._peer(to, tag), self.batch.groups)

    def mates(self, side: Side) -> list[Outbox]:
        """On the first rank: to the others of its stage."""
        peers = (self._peer(place, STEPS) for place in range(1, self.width))
        return [Outbox(side, peer, self.batch.groups) for peer in peers]

    def ends(self, side: Side) -> list[Inbox]:
        """On the first rank: from the last rank of each chain, its own one's first."""
        places = range(len(self.ranks) - self.width, len(self.ranks))
        return [Inbox(side, self._peer(place, TOKENS)) for place in places]

    def _peer(self, place: int, tag: int) -> Peer:
        return Peer.of(self.gang, self.ranks[place], tag)


class _Stage:
    """What the first rank and the serving ones have in common."""

    def __init__(self, runner: Runner, chain: Chain, recorder: Recorder) -> None:
        self.runner, self.chain = runner, chain
        self.side = Side.of(chain.gang, chain.stage, recorder)
        self.inbox, self.outbox = chain.inbox(self.side), chain.outbox(self.side)
        self.timer: Timer = timer(recorder, runner.device)
        if chain.group is not None and runner.device.type != "cuda":
            self.timer = GroupTimer(recorder, chain.group)

    def computing(self, step: Step, number: int) -> AbstractContextManager[None]:
        return self.timer.span(step.kind, self.side.stage, step.group, number)

    def pass_on(self, step: Step, number: int, hidden: torch.Tensor) -> None:
        """Copy the hidden states off this stage's device and send them."""
        with self.side.recorder.span("transfer", self.side.stage, step.group, number):
            data = self.chain.form.pack(Message(step, number, hidden))
        self.outbox.send(data)

    def stop_next(self) -> None:
        """Tell the next stage that nothing follows, once for each message that it is ready to receive; the last
        one tells the first rank."""
        for _ in range(1 if self.chain.last else AHEAD):
            self.outbox.send(stop())

    def close(self) -> None:
        self.outbox.finish()
        self.timer.close()
        self.runner.close()


class PipelineStepModel:
    """The first rank, and with it the replica: a StepModel. ``close`` ends the serving of the others."""

    def __init__(self, runner: Runner, chain: Chain, recorder: Recorder) -> None:
        self.depth = chain.stages
        self._stage = _Stage(runner, chain, recorder)
        self._mates = chain.mates(self._stage.side)
        self._drawn: deque[Tokens] = deque()  # where there is one stage
        self._sent: deque[Step] = deque()  # where there are several
        self._steps = 0

    def launch(self, step: Step) -> None:
        """Compute this rank's part of ``step`` and send it on."""
        stage, number = self._stage, self._steps
        if self._mates:  # at once: no rank of a stage can compute without the others
            data = announce(step, number)
            for mate in self._mates:
                mate.send(data.clone())
        if stage.chain.draws:
            with stage.computing(step, number):
                self._drawn.append(Tokens(outcome(stage.runner.run(step), step)))
        else:
            stage.inbox.post(torch.empty(ENVELOPE + step.answers, dtype=torch.int64))
            self._sent.append(step)
            with stage.computing(step, number):
                hidden = stage.runner.run(step)
            stage.pass_on(step, number, hidden)
        self._steps += 1

    def collect(self) -> torch.Tensor:
        """What the oldest step in flight yields, when the last stage has sent it."""
        if self._drawn:
            tokens = self._drawn.popleft().wait()
        else:
            tokens = answered(self._stage.inbox.receive(), self._sent.popleft())
        self._stage.timer.poll()
        return tokens

    def figures(self) -> dict[str, float]:
        """What this rank holds in memory."""
        return self._stage.runner.held()

    def close(self) -> None:
        """Stop the other ranks, and return when the last of every chain has said that it has stopped."""
        stage = self._stage
        ends = stage.chain.ends(stage.side)[stage.chain.draws :]
        for end in ends:
            end.post(stop())
        for mate in self._mates:
            for _ in range(AHEAD):
                mate.send(stop())
        if not stage.chain.last:
            stage.stop_next()
        for end in ends:
            end.receive()
        for mate in self._mates:
            mate.finish()
        stage.close()


class ServingStage:
    """Any other rank: it computes on what the stage before or the first rank sends, until it is told to stop."""

    def __init__(self, runner: Runner, chain: Chain, recorder: Recorder) -> None:
        self._stage = _Stage(runner, chain, recorder)
        for _ in range(AHEAD):
            self._stage.inbox.post(chain.incoming.buffer(chain.batch))

    def serve(self, working: Callable[[bool], None] = lambda _: None) -> dict[str, float]:
        """Serve until the first rank closes; returns what this rank held in memory. ``working`` is told True when a step
        begins and False when this rank waits for another one."""
        stage = self._stage
        while True:
            working(False)
            data = stage.inbox.receive()
            message = stage.chain.incoming.unpack(data)
            if message is None:
                break
            working(True)
            self._pass_on(message)
            stage.inbox.post(data)
            stage.timer.poll()
        for _ in range(AHEAD - 1):
            stage.inbox.receive()
        stage.stop_next()
        held = stage.runner.held()
        stage.close()
        return held

    def _pass_on(self, message: Message) -> None:
        stage, number = self._stage, message.number
        step, hidden = (
            (message.announced(), None) if stage.chain.first else (message.step, message.hidden)
        )
        with stage.computing(step, number):
            result = stage.runner.run(step, hidden)
            found = outcome(result, step) if stage.chain.draws else None
        if found is not None:
            stage.outbox.send(answer(message, found))
        elif not stage.chain.last:
            stage.pass_on(step, number, result)
