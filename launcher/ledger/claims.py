"""Claims: which rank computes which chunk. A claim is a file that only one rank can have created.

Claims save work, they are not what results depend on: of a row computed twice the merge takes one.
"""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from launcher import crash
from launcher.errors import Busy, RunFailed
from launcher.input.files import told
from launcher.input.index import InputIndex
from launcher.ledger.attempts import is_over
from launcher.ledger.reader import Finished
from launcher.records import Attempt
from launcher.run import Run, sync_file


@dataclass(frozen=True)
class Chunk:
    """Rows that this rank alone is to compute. ``rows`` are those of the chunk that are not finished yet."""

    number: int
    generation: int
    rows: list[int]


class Claims:
    """The chunks for one rank of one attempt: first those that nobody had, then those of attempts that are over."""

    def __init__(self, run: Run, attempt: Attempt, rank: int) -> None:
        """Reads all journals. Raises RunFailed if claims can't be made here."""
        self._run, self._attempt = run, attempt
        self._index = InputIndex(run.input)
        self._finished = Finished(run, self._index).update()
        self._token = run.claimant(attempt, rank)
        with told("cannot claim rows", run.claims, kind=RunFailed):
            self._token.write_text(f"{attempt.name} r{rank}\n")
            crash.point("written", self._token)
            sync_file(self._token)
            crash.point("synced", self._token)
        # Multiples of irrational numbers fall evenly between 0 and 1: ranks start far from each other,
        # without having to know how many they are.
        share = (rank * 0.6180339887 + attempt.world * 0.4142135624) % 1
        start = int(share * self._index.chunks)
        self._order = [*range(start, self._index.chunks), *range(start)]
        self._fresh = deque(self._order)
        self._holders: dict[Path, Attempt | None] = {}
        self._over: set[Attempt] = set()

    def next(self) -> Chunk | None:
        """A chunk that is now this rank's, or None if there is none to be had at the moment.

        Raises Busy if this attempt is over: a newer one is at work. Raises RunFailed when the
        run directory fails.
        """
        if is_over(self._run, self._attempt):
            raise Busy(f"attempt {self._attempt.name} is over", where=str(self._run.path))
        with told("cannot claim rows", self._run.claims, kind=RunFailed):
            return self._fresh_chunk() or self._orphaned_chunk()

    def _fresh_chunk(self) -> Chunk | None:
        while self._fresh:
            number = self._fresh.popleft()
            if not self._rows_left(number):
                continue
            if chunk := self._take(number, 0):
                return chunk
            held = self._held()  # one listing rather than a failing link for each that is taken
            self._fresh = deque(number for number in self._fresh if number not in held)
        return None

    def _orphaned_chunk(self) -> Chunk | None:
        held, alive = self._held(), set[Attempt]()
        for number in self._order:
            if number not in held or not self._rows_left(number):
                continue
            if not self._is_void(self._run.claim(number, held[number]), alive):
                continue
            if self._rows_left(number) and (chunk := self._take(number, held[number] + 1)):
                return chunk
        return None

    def _is_void(self, claim: Path, alive: set[Attempt]) -> bool:
        """Whether the claim's attempt is over; ``alive`` are those that were not a moment ago."""
        holder = self._holder(claim)
        if holder is None or holder in self._over:
            return True
        if holder in alive or not is_over(self._run, holder):
            alive.add(holder)
            return False
        self._over.add(holder)
        self._finished.update(self._run.list_journals(holder))  # what it finished is known only now
        return True

    def _rows_left(self, number: int) -> list[int]:
        rows = self._index.rows_of(number)
        done = self._finished.done[rows.start : rows.stop]
        return [rows.start + int(place) for place in (~done).nonzero()[0]]

    def _take(self, number: int, generation: int) -> Chunk | None:
        """Link this rank's token as the claim: unlike a created file, a link is never seen half-written."""
        claim = self._run.claim(number, generation)
        try:
            os.link(self._token, claim)
        except FileExistsError:
            if not claim.samefile(
                self._token
            ):  # NFS may have lost the answer to a link that was made
                return None
        crash.point("linked", self._token)
        return Chunk(number, generation, self._rows_left(number))

    def _held(self) -> dict[int, int]:
        """The highest generation of every chunk that was ever claimed."""
        held: dict[int, int] = {}
        for path in self._run.claims.iterdir():
            number, dot, generation = path.name.partition(".g")
            if dot:
                held[int(number)] = max(held.get(int(number), 0), int(generation))
        return held

    def _holder(self, claim: Path) -> Attempt | None:
        """Whose claim it is; None if it does not say, which a power cut can do: then it may be taken."""
        if claim not in self._holders:
            try:
                self._holders[claim] = Attempt.parse(claim.read_text().split(" ")[0])
            except ValueError:
                self._holders[claim] = None
        return self._holders[claim]
