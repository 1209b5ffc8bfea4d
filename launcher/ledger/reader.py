"""Reading journals back: which rows are finished, and where their records are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from launcher import logs
from launcher.input.index import InputIndex
from launcher.input.results import read_head
from launcher.ledger.attempts import Fences
from launcher.run import Run

if TYPE_CHECKING:
    import numpy


class Place(NamedTuple):
    """A whole record in a journal: the line of ``length`` bytes at ``offset``, about row ``row``."""

    offset: int
    length: int
    row: int
    failed: bool


@dataclass
class Scan:
    """Iterates over the whole records of a journal from ``position`` to ``limit`` (bytes; None: the end).

    ``position`` moves behind every whole record, so a torn tail is read again by the next iteration, when
    its writer may have completed it. A damaged line with whole records behind it is no tail: it is
    reported, and its row counts as not done, to be computed again.
    """

    path: Path
    position: int = 0
    limit: int | None = None
    damaged: list[int] = field(default_factory=list)  # offsets

    def __iter__(self) -> Iterator[Place]:
        suspects: list[int] = []
        offset = self.position
        with self.path.open("rb", buffering=1 << 20) as file:
            file.seek(offset)
            for line in file:
                end = offset + len(line)
                if self.limit is not None and end > self.limit:
                    return
                head = read_head(line)
                if head is None:
                    suspects.append(offset)
                else:
                    self._report(suspects)
                    self.position = end
                    yield Place(offset, len(line), *head)
                offset = end

    def _report(self, suspects: list[int]) -> None:
        for offset in suspects:
            self.damaged.append(offset)
            logs.get_logger().warning(
                "%s: the record at byte %d is damaged; its row counts as not done",
                self.path,
                offset,
            )
        suspects.clear()


class Finished:
    """Which rows have a record: ``done`` and ``failed`` (a part of them) are bool arrays by row.

    A script's run has no rows. ``update`` reads what was appended since the last time, honouring the fences.
    """

    def __init__(self, run: Run, index: InputIndex | None = None) -> None:
        import numpy

        self._run = run
        self._scans: dict[Path, Scan] = {}
        if index is None and run.has_rows:
            index = InputIndex(run.input)
        rows = 0 if index is None else len(index)
        self.done: numpy.ndarray = numpy.zeros(rows, dtype=bool)
        self.failed: numpy.ndarray = numpy.zeros(rows, dtype=bool)
        if index is not None:
            self._scans[index.bad] = Scan(index.bad)
            self._read(self._scans[index.bad])

    def update(self, journals: list[Path] | None = None) -> Finished:
        """Read on in ``journals``, or in all there are."""
        journals = self._run.list_journals() if journals is None else journals
        fences = Fences(
            self._run
        )  # after the listing: a fence leaves out journals that it does not know
        for path in journals:
            scan = self._scans.setdefault(path, Scan(path))
            scan.limit = fences.limit(path)
            self._read(scan)
        return self

    def _read(self, scan: Scan) -> None:
        for place in scan:
            if place.row < len(self.done) and not self.done[place.row]:
                self.done[place.row] = True
                self.failed[place.row] = place.failed


def finished_rows(run: Run) -> numpy.ndarray:
    """Bool array by row: whether the row has a whole record."""
    return Finished(run).update().done


def missing_rows(run: Run) -> int:
    """The number of rows without a whole record."""
    return int((~finished_rows(run)).sum())
