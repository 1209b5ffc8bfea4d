"""Where the time of a run's ranks went so far, while it goes, and which of them lag behind."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from launcher.measure.bubble import SHARES
from launcher.records import Attempt
from launcher.report.measured import Measured
from launcher.run import Run

EVERY_S, PRICE = 3.0, 20.0  # a look at timelines costs at most one part in PRICE of the time
SILENT_S = 10.0  # a rank writes its status twice a second
FRESH_S = 30.0  # a shared filesystem may show it late
SLOW = 0.7  # of the median of the other replicas' rows per second
LEAST_ROWS = 20  # of the others, for a rank's few to mean anything
Rank = Mapping[str, Any]
Key = tuple[str, int]  # attempt and rank


class SharesSoFar:
    """Shares by (attempt, rank), of the mean device where a rank has several. Timelines may be long, so they are
    read again only when the last reading was cheap for the time that has passed."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._next = 0.0
        self._known: dict[Key, dict[str, float]] = {}

    def look(self, ranks: Sequence[Rank]) -> dict[Key, dict[str, float]]:
        """The shares of ``ranks`` (state.RunState's), as far as they have computed."""
        began = time.monotonic()
        if began >= self._next:
            self._known = {}
            attempts = map(Attempt.parse, {rank["attempt"] for rank in ranks})
            for measured in Measured.of(self._run, *attempts):
                self._known |= _shares(measured)
            self._next = time.monotonic() + max(EVERY_S, PRICE * (time.monotonic() - began))
        return self._known


def _shares(measured: Measured) -> dict[Key, dict[str, float]]:
    found: dict[int, list[Any]] = {}
    for (rank, _), seconds in measured.accounts.items():
        found.setdefault(rank, []).append(seconds)
    summed = {rank: sum(each[1:], start=each[0]) for rank, each in found.items()}
    return {
        (measured.attempt.name, rank): dict(
            zip(SHARES, (seconds / seconds.sum()).tolist(), strict=True)
        )
        for rank, seconds in summed.items()
    }


def rate(rank: Rank, what: str) -> float | None:
    """``what`` (rows_done, completion_tokens) per second since the rank began to run; None if it has not."""
    seconds = rank["updated"] - rank["phase_since"]
    return rank[what] / seconds if rank["phase"] == "running" and seconds > 0 else None


def stragglers(ranks: Sequence[Rank]) -> dict[Key, str]:
    """Ranks that others wait for, or that do less than others like them, with what is wrong in a few words."""
    found: dict[Key, str] = {}
    rates = {_key(r): value for r in ranks if (value := rate(r, "rows_done")) and r["rows_done"]}
    under_way = any(rank["phase"] == "running" for rank in ranks)
    for rank in ranks:
        key = _key(rank)
        others = [value for other, value in rates.items() if other != key]
        if rank["heard_s"] > SILENT_S and rank["phase"] not in ("finished", "gone"):
            found[key] = f"silent for {rank['heard_s']:.0f} s"
        elif under_way and rank["phase"] in ("starting", "joining", "loading"):
            found[key] = f"still {rank['phase']}"
        elif key in rates and others and rates[key] < SLOW * statistics.median(others):
            found[key] = f"{rates[key] / statistics.median(others):.0%} of the others' rows/s"
    return found


def behind(ranks: Sequence[Rank]) -> list[dict[str, Any]]:
    """Of ranks that worked side by side: those that did far fewer rows than the others. A rank that only serves its
    replica's first one does none, and is not counted."""
    working = [rank for rank in ranks if rank["rows_done"]]
    found = []
    for rank in working:
        others = [other["rows_done"] for other in working if other is not rank]
        usual = statistics.median(others) if others else 0
        if usual >= LEAST_ROWS and rank["rows_done"] < SLOW * usual:
            share = rank["rows_done"] / usual
            found.append(
                {name: rank[name] for name in ("attempt", "rank", "host")} | {"share": share}
            )
    return found


def _key(rank: Rank) -> Key:
    return rank["attempt"], rank["rank"]
