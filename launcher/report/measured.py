"""What one attempt left behind: the last word of its ranks, and the account of its timelines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from launcher.measure.bubble import Seconds, Unit, account
from launcher.measure.timeline import Timeline, compute_window, read_timelines
from launcher.plan.plan import DevicePlan
from launcher.records import Attempt, RankStatus
from launcher.run import Run, read_json

Interval = tuple[float, float]  # seconds since the epoch


@dataclass
class Measured:
    """One attempt. Whatever a rank that died did not leave is missing here.

    ``alive`` is the time from its start to its ranks' last word; ``windows`` has one interval per replica, from
    first compute start to last compute end; ``accounts`` and ``totals`` are by (rank, stage). ``idle`` are the
    replicas that got no row while others did.
    """

    attempt: Attempt
    ranks: dict[int, RankStatus]
    alive: Interval | None
    windows: list[Interval]
    accounts: dict[Unit, Seconds]
    totals: dict[Unit, dict[str, tuple[float, int]]]  # seconds and number of spans by kind
    idle: set[int]

    @classmethod
    def of(cls, run: Run, *attempts: Attempt) -> list[Measured]:
        """What each of ``attempts`` left in ``run``, whose folders are listed once for all of them."""
        words, paths = defaultdict(list), defaultdict(list)
        for status in statuses(run, *attempts):
            words[status.attempt].append(status)
        for path in run.timelines():
            paths[path.name.rpartition("-")[0]].append(path)
        return [cls._of(run, each, words[each.name], paths[each.name]) for each in attempts]

    @classmethod
    def _of(
        cls, run: Run, attempt: Attempt, words: list[RankStatus], paths: list[Path]
    ) -> Measured:
        ranks = {status.rank: status for status in words}
        timelines = read_timelines(paths)
        replicas = by_replica(timelines)
        found = {replica: compute_window(each) for replica, each in replicas.items()}
        windows = [window for window in found.values() if window]
        idle = {replica for replica, window in found.items() if windows and not window}
        end = max((end for _, end in windows), default=None)
        accounts = {
            unit: seconds
            for each in replicas.values()
            for unit, seconds in account(each, end).items()
        }
        totals: dict[Unit, dict[str, tuple[float, int]]] = {}
        for timeline in timelines:
            for (stage, kind), total in timeline.totals.items():
                totals.setdefault((timeline.rank, stage), {})[kind] = total
        alive = alive_interval(read_json(run.attempt_file(attempt, "attempt")), ranks, windows)
        return cls(attempt, ranks, alive, windows, accounts, totals, idle)

    def figure(self, name: str, device: DevicePlan, gpu: int | None, alone: bool) -> float | None:
        """What ``device``'s rank said of it: ``name@gpu0`` by its number among the rank's GPUs, ``name@stage``, or plain
        ``name`` where the rank has no other device (``alone``)."""
        status = self.ranks.get(device.rank)
        if status is None:
            return None
        names = [f"{name}@gpu{gpu}", f"{name}@{device.stage}", *([name] if alone else [])]
        return next((status.figures[each] for each in names if each in status.figures), None)


def length_of_union(intervals: Iterable[Interval]) -> float:
    """Seconds in which at least one of the intervals is on."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def statuses(run: Run, *attempts: Attempt) -> Iterable[RankStatus]:
    """The last word of each rank of these attempts."""
    known = {field.name for field in fields(RankStatus)}
    for path in run.statuses(*attempts):
        data: dict[str, Any] | None = read_json(path)
        if data:
            yield RankStatus(**{key: value for key, value in data.items() if key in known})


def by_replica(timelines: list[Timeline]) -> dict[int, list[Timeline]]:
    """The timelines of one attempt, by replica."""
    replicas: dict[int, list[Timeline]] = {}
    for timeline in timelines:
        replicas.setdefault(timeline.replica, []).append(timeline)
    return replicas


def alive_interval(
    info: dict[str, Any] | None, ranks: dict[int, RankStatus], windows: list[Interval]
) -> Interval | None:
    """From the start of an attempt (``info`` is its attempt.json) to its ranks' last word; None if neither is known."""
    begins = [status.figures["started"] for status in ranks.values() if "started" in status.figures]
    begins += [info["started"]] if info and info.get("started") else []
    begins += [begin for begin, _ in windows]
    ends = [status.updated for status in ranks.values() if status.updated]
    ends += [end for _, end in windows]
    return (min(begins), max(ends)) if begins and ends else None
