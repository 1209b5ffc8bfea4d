"""Engine: the decode loop. It fills slots with requests, launches steps, collects their tokens and refills
slots as sequences finish; it knows nothing of devices."""

from __future__ import annotations

from typing import Any

from launcher.engine.loop import Emit, Flight, Loop
from launcher.engine.sequence import Group, Sequence
from launcher.input.codes import RowError
from launcher.model.step import Step
from launcher.records import Request


class Engine(Loop[Group, Sequence]):
    """Generates. A step feeds every sequence of its group that decodes, and prompts in the room that these leave:
    arithmetic that decoding alone would not use, and no prompt holds the others up for long."""

    def _new_group(self, number: int) -> Group:
        return Group(number, self._batch.slots)

    def _admit(self, request: Request, free: list[Group]) -> None:
        """Into the emptiest group."""
        prompt = self._text.encode(request)
        self.counters.prompt_tokens += len(prompt)
        min(free, key=len).add(Sequence(request, prompt, self._text))

    def _draft(self, group: Group) -> tuple[Step, list[Sequence]] | None:
        if not len(group):
            return None
        rows = group.next_rows(self._batch.prefill_chunk)
        return group.step(rows), [sequence for sequence, _ in rows]

    def _take_in(self, flight: Flight[Group, Sequence], found: list[Any], emit: Emit) -> None:
        counts = flight.step.counts.tolist()
        for sequence, drawn, count in zip(flight.rows, found, counts, strict=True):
            token, *told = drawn if isinstance(drawn, list) else (drawn,)
            try:
                outcome = sequence.advance(count, int(token), told)
            except RowError as error:
                if not sequence.restart_alone():
                    flight.group.remove(sequence)
                    self._fail(sequence.request, error, emit)
                continue
            if outcome is not None:
                flight.group.remove(sequence)
                self.counters.finished(outcome, sequence)
                emit(outcome)
