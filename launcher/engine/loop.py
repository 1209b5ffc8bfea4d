"""Loop: what engines have in common. It pulls requests into groups, launches their steps and collects what they yield."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from launcher.engine.sequence import Counters
from launcher.engine.text import Text
from launcher.input.codes import RowError
from launcher.model.step import Step, StepModel, SweepModel
from launcher.plan.plan import Batch
from launcher.records import Failure, Generation, Request, Score

Pull = Callable[[], Request | None]
Emit = Callable[[Generation | Score | Failure], None]


class AnyGroup(Protocol):
    """What steps together: at most one step in flight, and maybe room for another request."""

    in_flight: bool

    @property
    def has_room(self) -> bool: ...


Members = TypeVar("Members", bound=AnyGroup)
Row = TypeVar("Row")


@dataclass(frozen=True)
class Flight(Generic[Members, Row]):
    """A step that was launched, and whose the rows (or numbers) are that it yields."""

    group: Members
    step: Step
    rows: list[Row]


class Loop(ABC, Generic[Members, Row]):
    """Runs requests through ``model``: ``batch.groups`` groups of ``batch.slots`` slots.

    Every group has at most one step in flight, and every group with work has one, so with ``model.depth`` groups or
    more all stages are busy. With ``in_rounds`` no group goes on before the steps of all groups are done, as GPipe
    does it: the stages drain at every step. A SweepModel is run so, too.
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

        False if ``should_stop`` said so, which is asked between steps: rows in flight are given up,
        whoever pulls their requests again computes them again, to the same result.
        """
        try:
            while not should_stop():
                self._refill(pull, emit, should_stop)
                for group in self._groups:
                    self._launch(group)
                if not self._flights:
                    return True
                for _ in range(len(self._flights) if self._in_rounds else 1):
                    flight = self._flights.popleft()
                    found = self._model.collect().tolist()
                    flight.group.in_flight = False
                    self.counters.steps += 1
                    self._take_in(flight, found, emit)
            return False
        finally:
            for _ in range(len(self._flights)):
                self._model.collect()
            self._reset()

    def _reset(self) -> None:
        self._groups = [self._new_group(number) for number in range(self._batch.groups)]
        self._flights: deque[Flight[Members, Row]] = deque()
        self._exhausted = False

    def _refill(self, pull: Pull, emit: Emit, should_stop: Callable[[], bool]) -> None:
        """Give groups that are not in flight what they have room for.

        Rows that fail before they take a slot may be many, so this, too, can be stopped.
        """
        while not self._exhausted and not should_stop():
            free = self._free()
            if not free:
                return
            request = pull()
            if request is None:
                self._exhausted = True
                return
            try:
                self._admit(request, free)
            except RowError as error:
                self._fail(request, error, emit)

    def _free(self) -> list[Members]:
        return [group for group in self._groups if not group.in_flight and group.has_room]

    def _launch(self, group: Members) -> None:
        """Launch the next step of ``group``, if it has one to take."""
        if group.in_flight or (drafted := self._draft(group)) is None:
            return
        step, rows = drafted
        self._model.launch(step)
        group.in_flight = True
        self._flights.append(Flight(group, step, rows))

    def _fail(self, request: Request, error: RowError, emit: Emit) -> None:
        self.counters.rows_failed += 1
        emit(Failure(request.index, request.id, error.code, str(error)))

    @abstractmethod
    def _new_group(self, number: int) -> Members:
        """An empty group."""

    @abstractmethod
    def _admit(self, request: Request, free: list[Members]) -> None:
        """Give ``request`` to one of these groups. Raises RowError."""

    @abstractmethod
    def _draft(self, group: Members) -> tuple[Step, list[Row]] | None:
        """The next step of ``group``, and whose what it yields is."""

    @abstractmethod
    def _take_in(self, flight: Flight[Members, Row], found: list[Any], emit: Emit) -> None:
        """Take in what a step yielded, and emit what it finishes."""
