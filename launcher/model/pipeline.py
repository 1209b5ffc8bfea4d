"""A replica as a pipeline of ranks: the first one is the engine's StepModel, the others serve it.

    first: launch ──hidden──► serving ──hidden──► ... ──hidden──► last: draw
             ▲                                                       │
             └──────────────────────── tokens ───────────────────────┘

How many groups are in flight, and when each goes on, is the engine's: it makes the schedule.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch

from launcher.measure.device import timer
from launcher.measure.spans import Recorder
from launcher.model.gang import Gang
from launcher.model.link import ENVELOPE, Inbox, Outbox, Peer, Side
from launcher.model.message import Form, Message, answer, stop
from launcher.model.sampling import draw
from launcher.model.step import Step
from launcher.plan.plan import Batch

HIDDEN, TOKENS = 1, 2  # tags: the last stage and the first may be neighbours both ways
AHEAD = 2  # messages received while the one before is computed on


class Runner(Protocol):
    """What runs a stage: StageRunner, or something of known speed in its place."""

    device: torch.device

    def run(self, step: Step, hidden: torch.Tensor | None = None) -> torch.Tensor:
        """Hidden states (t, d) for the next stage, or logits (b, vocabulary) on the last."""

    def close(self) -> None:
        """Give up what it holds."""


@dataclass(frozen=True)
class Chain:
    """The ranks of one replica in the order of its stages, this one's place among them, and what they pass on."""

    gang: Gang
    ranks: list[int]
    batch: Batch
    form: Form

    @property
    def stage(self) -> int:
        return self.ranks.index(self.gang.rank)

    @property
    def first(self) -> bool:
        return self.stage == 0

    @property
    def last(self) -> bool:
        return self.stage == len(self.ranks) - 1

    def inbox(self, side: Side) -> Inbox:
        """From the stage before; on the first stage, tokens from the last one."""
        tag = HIDDEN if self.stage else TOKENS
        return Inbox(side, Peer.of(self.gang, self.ranks[self.stage - 1], tag))

    def outbox(self, side: Side) -> Outbox:
        """To the next stage; on the last one, tokens to the first. A group has one step in flight."""
        tag, to = (TOKENS, 0) if self.last else (HIDDEN, self.stage + 1)
        return Outbox(side, Peer.of(self.gang, self.ranks[to], tag), self.batch.groups)


class _Stage:
    """What the first stage and the serving ones have in common."""

    def __init__(self, runner: Runner, chain: Chain, recorder: Recorder) -> None:
        self.runner, self.chain = runner, chain
        self.side = Side.of(chain.gang, chain.stage, recorder)
        self.inbox, self.outbox = chain.inbox(self.side), chain.outbox(self.side)
        self.timer = timer(recorder, runner.device)

    def computing(self, step: Step, number: int) -> AbstractContextManager[None]:
        return self.timer.span(step.kind, self.side.stage, step.group, number)

    def pass_on(self, step: Step, number: int, hidden: torch.Tensor) -> None:
        """Copy the hidden states off this stage's device and send them."""
        with self.side.recorder.span("transfer", self.side.stage, step.group, number):
            data = self.chain.form.pack(Message(step, number, hidden))
        self.outbox.send(data)

    def stop_next(self) -> None:
        """Tell the next stage that nothing follows, once for each message that it is ready to receive."""
        for _ in range(1 if self.chain.last else AHEAD):
            self.outbox.send(stop())

    def close(self) -> None:
        self.outbox.finish()
        self.timer.close()
        self.runner.close()


class PipelineStepModel:
    """The first stage, and with it the replica: a StepModel. ``close`` ends the serving of the others."""

    def __init__(self, runner: Runner, chain: Chain, recorder: Recorder) -> None:
        self.depth = len(chain.ranks)
        self._stage = _Stage(runner, chain, recorder)
        self._steps = 0

    def launch(self, step: Step) -> None:
        """Compute this stage's part of ``step`` and send it on."""
        stage, number = self._stage, self._steps
        stage.inbox.post(torch.empty(ENVELOPE + len(step.slots), dtype=torch.int64))
        with stage.computing(step, number):
            hidden = stage.runner.run(step)
        stage.pass_on(step, number, hidden)
        self._steps += 1

    def collect(self) -> torch.Tensor:
        """The tokens of the oldest step in flight, when the last stage has sent them."""
        tokens = self._stage.inbox.receive()[ENVELOPE:]
        self._stage.timer.poll()
        return tokens

    def close(self) -> None:
        """Stop the other stages, and return when the last one has said that all have stopped."""
        self._stage.inbox.post(stop())
        self._stage.stop_next()
        self._stage.inbox.receive()
        self._stage.close()


class ServingStage:
    """Any other stage: it computes on what the stage before sends, until it is told to stop."""

    def __init__(self, runner: Runner, chain: Chain, recorder: Recorder) -> None:
        self._stage = _Stage(runner, chain, recorder)
        for _ in range(AHEAD):
            self._stage.inbox.post(chain.form.buffer(chain.batch))

    def serve(self, working: Callable[[bool], None] = lambda _: None) -> None:
        """Serve until the first stage closes. ``working`` is told True when a step begins and False when this
        rank waits for another one."""
        stage = self._stage
        while True:
            working(False)
            data = stage.inbox.receive()
            message = stage.chain.form.unpack(data)
            if message is None:
                break
            working(True)
            self._pass_on(message)
            stage.inbox.post(data)
            stage.timer.poll()
        for _ in range(AHEAD - 1):
            stage.inbox.receive()
        stage.stop_next()
        stage.close()

    def _pass_on(self, message: Message) -> None:
        stage, step, number = self._stage, message.step, message.number
        if not stage.chain.last:
            with stage.computing(step, number):
                hidden = stage.runner.run(step, message.hidden)
            stage.pass_on(step, number, hidden)
            return
        with stage.computing(step, number):
            tokens = draw(stage.runner.run(step, message.hidden), step.sampling)
        stage.outbox.send(answer(message, tokens))
