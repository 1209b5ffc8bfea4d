"""Rows that ask for several answers, as requests for one answer each: engines know of no others."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Any

from launcher.engine.loop import Emit, Pull
from launcher.records import Failure, Generation, Request, Score

APART = 0x9E3779B97F4A7C15  # between the seeds of a row's answers, so that they meet no other row's


class Choices:
    """Between an engine and where its rows come from and go to: ``pull`` gives a request for each answer, ``emit`` hands
    a row on when all of its answers are there, or at once when one of them fails.

    A request for one of several answers has a number below zero in the place of its row's index.
    """

    def __init__(self, source: Pull, target: Emit) -> None:
        self._source, self._target = source, target
        self._waiting: deque[Request] = deque()
        self._rows: dict[int, tuple[_Row, int]] = {}  # by the number of a request
        self._last = 0

    def pull(self) -> Request | None:
        """The next request; None when there are no more rows."""
        if not self._waiting:
            request = self._source()
            if request is None or request.sampling.n == 1:
                return request
            self._waiting.extend(self._divided(request))
        return self._waiting.popleft()

    def emit(self, record: Generation | Score | Failure) -> None:
        """Take in what became of a request."""
        if record.index >= 0:
            self._target(record)
            return
        row, number = self._rows.pop(record.index)
        if row.failed:
            return
        if isinstance(record, Generation):
            row.answers[number] = record
            if len(row.answers) == row.request.sampling.n:
                self._target(row.result())
        else:
            row.failed = True
            own = [request for request in self._waiting if self._rows[request.index][0] is row]
            for request in own:
                self._waiting.remove(request)
                del self._rows[request.index]
            self._target(replace(record, index=row.request.index))

    def _divided(self, request: Request) -> list[Request]:
        row, sampling, found = _Row(request, {}), request.sampling, []
        for number in range(sampling.n):
            self._last -= 1
            self._rows[self._last] = row, number
            own = replace(sampling, n=1, seed=(sampling.seed + number * APART) % 2**63)
            found.append(replace(request, index=self._last, sampling=own))
        return found


@dataclass
class _Row:
    """A row in work, and its answers so far by their numbers."""

    request: Request
    answers: dict[int, Generation]
    failed: bool = False

    def result(self) -> Generation:
        """The row with all its answers."""
        answers = [self.answers[number] for number in range(len(self.answers))]
        return replace(
            answers[0],
            index=self.request.index,
            completion_tokens=sum(answer.completion_tokens for answer in answers),
            choices=[_choice(answer) for answer in answers],
        )


def _choice(answer: Generation) -> dict[str, Any]:
    keys = ("text", "finish_reason", "completion_tokens", "logprobs")
    return {key: value for key in keys if (value := getattr(answer, key)) is not None}
