"""Engine: the decode loop. It fills slots with requests, launches steps, collects their tokens and refills
slots as sequences finish; it knows nothing of devices."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch

from launcher.engine.sequence import Counters, Group, Sequence
from launcher.engine.text import Text
from launcher.input.codes import RowError
from launcher.model.step import Step, StepModel, SweepModel
from launcher.plan.plan import Batch
from launcher.records import Failure, Generation, Request

Pull = Callable[[], Request | None]
Emit = Callable[[Generation | Failure], None]


@dataclass(frozen=True)
class _Flight:
    """A step that was launched, and the sequences of its rows."""

    group: Group
    step: Step
    rows: list[Sequence]


class Engine:
    """Runs requests through ``model``: ``batch.groups`` groups of ``batch.slots`` slots.

    Every group has at most one step in flight, and every group with work has one, so with ``model.depth`` groups or
    more all stages are busy. A step feeds every sequence of its group that decodes, and prompts in the room that these
    leave: arithmetic that decoding alone would not use, and no prompt holds the others up for long.

    With ``in_rounds`` no group goes on before the steps of all groups are done, as GPipe does it: the stages
    drain at every token. A SweepModel is run so, too.
    """

    def __init__(self, model: StepModel, text: Text, batch: Batch, in_rounds: bool = False) -> None:
        self.counters = Counters()
        self._model = model
        self._text = text
        self._batch = batch
        self._in_rounds = in_rounds or isinstance(model, SweepModel)
        self._reset()

    def run(self, pull: Pull, emit: Emit, should_stop: Callable[[], bool] = lambda: False) -> bool:
        """Answer requests until ``pull`` gives None and all that it gave are emitted: True.

        False if ``should_stop`` said so, which is asked between steps: sequences in flight are given up,
        whoever pulls their requests again computes them again, to the same text.
        """
        try:
            while not should_stop():
                self._refill(pull, emit, should_stop)
                for group in self._groups:
                    self._launch(group)
                if not self._flights:
                    return True
                for _ in range(len(self._flights) if self._in_rounds else 1):
                    self._collect(emit)
            return False
        finally:
            for _ in range(len(self._flights)):
                self._model.collect()
            self._reset()

    def _reset(self) -> None:
        self._groups = [Group(number, self._batch.slots) for number in range(self._batch.groups)]
        self._flights: deque[_Flight] = deque()
        self._exhausted = False

    def _refill(self, pull: Pull, emit: Emit, should_stop: Callable[[], bool]) -> None:
        """Fill the free slots of groups that are not in flight, the emptiest group first.

        Rows that fail before they take a slot may be many, so this, too, can be stopped.
        """
        while not self._exhausted and not should_stop():
            free = [group for group in self._groups if not group.in_flight and group.has_room]
            if not free:
                return
            sequence = self._next(pull, emit)
            if sequence is not None:
                min(free, key=len).add(sequence)

    def _next(self, pull: Pull, emit: Emit) -> Sequence | None:
        request = pull()
        if request is None:
            self._exhausted = True
            return None
        try:
            prompt = self._text.encode(request)
        except RowError as error:
            self._fail(request, error, emit)
            return None
        self.counters.prompt_tokens += len(prompt)
        return Sequence(request, prompt, self._text)

    def _launch(self, group: Group) -> None:
        if group.in_flight or not len(group):
            return
        step = group.step(group.next_rows(self._batch.prefill_chunk))
        self._model.launch(step)
        group.in_flight = True
        self._flights.append(_Flight(group, step, [group.slots[s] for s in step.slots.tolist()]))

    def _collect(self, emit: Emit) -> None:
        """Take in the oldest step's tokens, and emit what they finish."""
        flight = self._flights.popleft()
        tokens: torch.Tensor = self._model.collect()
        flight.group.in_flight = False
        self.counters.steps += 1
        for sequence, token, count in zip(
            flight.rows, tokens.tolist(), flight.step.counts.tolist(), strict=True
        ):
            try:
                outcome = sequence.advance(count, token)
            except RowError as error:
                if not sequence.restart_alone():
                    flight.group.remove(sequence)
                    self._fail(sequence.request, error, emit)
                continue
            if outcome is not None:
                flight.group.remove(sequence)
                self.counters.finished(outcome, sequence)
                emit(outcome)

    def _fail(self, request: Request, error: RowError, emit: Emit) -> None:
        self.counters.rows_failed += 1
        emit(Failure(request.index, request.id, error.code, str(error)))
