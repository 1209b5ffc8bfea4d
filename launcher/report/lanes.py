"""Lanes: what each stage of a run did and when, as the report's timeline shows it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launcher.measure.bubble import SHARES, Painting, paint
from launcher.measure.spans import COMPUTE, LOADING
from launcher.measure.timeline import Timeline, compute_window
from launcher.report.measured import Interval, by_replica

SPANS = (*COMPUTE, "transfer", *LOADING)  # shown as recorded
IDLE = ("bubble", "host_gap", "no_work")  # shown as the accounting sees them
SHOWN = (*SPANS, *IDLE)

ITEM = np.dtype([("start", "f8"), ("end", "f8"), ("kind", "u1"), ("group", "i4"), ("step", "i8")])
Items = NDArray[
    Any
]  # of dtype ITEM: kind is an index into SHOWN, group and step are -1 for idle time
Key = tuple[int, int, int, int]  # world, replica, stage, rank


@dataclass
class Lane:
    """One stage over all attempts of its world. ``items`` are in the order in which they start; times are
    seconds on the axis."""

    world: int
    replica: int
    stage: int
    rank: int
    host: str
    items: Items


class Axis:
    """Time in the run: seconds since its first attempt began, without the time in which no attempt was alive."""

    def __init__(self, alive: Sequence[Interval]) -> None:
        merged: list[list[float]] = []
        for begin, end in sorted(alive):
            if merged and begin <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], end)
            else:
                merged.append([begin, end])
        lengths = [end - begin for begin, end in merged]
        passed = np.cumsum([0.0, *lengths])
        self.length = float(passed[-1])
        self.cuts = passed[1:-1].tolist()  # where a later attempt begins
        self._times = np.array(merged).ravel()
        self._passed = np.stack([passed[:-1], passed[1:]], axis=1).ravel()

    def at(self, times: Any) -> NDArray[np.float64]:
        """Places on the axis of these times (seconds since the epoch)."""
        if not len(self._times):
            return np.zeros_like(times)
        found: NDArray[np.float64] = np.interp(times, self._times, self._passed)
        return found


def build_lanes(timelines: Sequence[Timeline], axis: Axis) -> list[Lane]:
    """One lane per stage, in order of world, replica and stage."""
    parts: dict[Key, list[Items]] = {}
    hosts: dict[Key, str] = {}
    for attempt in sorted({t.attempt for t in timelines}, key=lambda a: (a.world, a.number)):
        mine = [t for t in timelines if t.attempt == attempt]
        window = compute_window(mine)
        for replica in by_replica(mine).values():
            painting = paint(replica, window[1] if window else None)
            for timeline in replica:
                for stage in _stages(timeline):
                    key = (attempt.world, timeline.replica, stage, timeline.rank)
                    hosts[key] = timeline.host
                    parts.setdefault(key, []).extend(_items(timeline, stage, painting))
    return [Lane(*key, hosts[key], _on_axis(parts[key], axis)) for key in sorted(parts)]


def window_on_axis(timelines: Sequence[Timeline], axis: Axis) -> Interval:
    """From the first compute start to the last compute end, or the whole axis if nothing was computed."""
    window = compute_window(timelines)
    begin, end = axis.at(np.array(window or ())) if window else (0.0, axis.length)
    return float(begin), float(end)


def coverage(items: Items, kind: int, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Seconds of items of ``kind`` between each pair of neighbouring edges: shape (edges - 1,)."""
    some = items[items["kind"] == kind]
    until = _elapsed(np.sort(some["start"]), edges) - _elapsed(np.sort(some["end"]), edges)
    found: NDArray[np.float64] = np.maximum(np.diff(until), 0.0)
    return found


def _elapsed(moments: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """The time that has passed since each of the sorted moments, summed, at each of ``at``."""
    before = np.searchsorted(moments, at)
    sums = np.concatenate([[0.0], np.cumsum(moments)])
    elapsed: NDArray[np.float64] = at * before - sums[before]
    return elapsed


def _stages(timeline: Timeline) -> list[int]:
    """The stages that this rank computes, or where it computed nothing, any that it has spans of."""
    computed = timeline.select(*COMPUTE)
    found: list[int] = np.unique((computed if len(computed) else timeline.spans)["stage"]).tolist()
    return found


def _items(timeline: Timeline, stage: int, painting: Painting | None) -> Iterator[Items]:
    for code, kind in enumerate(SPANS):
        spans = timeline.select(kind)
        if kind != "load":  # which is true of all stages of a rank
            spans = spans[spans["stage"] == stage]
        items = np.empty(len(spans), ITEM)
        for name in ("start", "end", "group", "step"):
            items[name] = spans[name]
        items["kind"] = code
        yield items
    if painting is not None and (timeline.rank, stage) in painting.states:
        yield _idle(painting, painting.states[timeline.rank, stage])


def _idle(painting: Painting, states: NDArray[np.uint8]) -> Items:
    """The stretches of time in which a stage was idle for one and the same reason."""
    codes = np.full(len(SHARES), -1)
    codes[[SHARES.index(kind) for kind in IDLE]] = [SHOWN.index(kind) for kind in IDLE]
    kinds = np.where(painting.known, codes[states], -1)
    firsts = np.flatnonzero(np.diff(kinds, prepend=-2))
    ends = np.append(firsts[1:], len(kinds))
    kept = kinds[firsts] >= 0
    items = np.empty(int(kept.sum()), ITEM)
    items["start"] = painting.edges[firsts[kept]]
    items["end"] = painting.edges[ends[kept]]
    items["kind"] = kinds[firsts[kept]]
    items["group"] = items["step"] = -1
    return items


def _on_axis(parts: list[Items], axis: Axis) -> Items:
    items = np.concatenate(parts)
    for side in ("start", "end"):
        items[side] = axis.at(items[side])
    ordered: Items = items[np.argsort(items["start"], kind="stable")]
    return ordered
