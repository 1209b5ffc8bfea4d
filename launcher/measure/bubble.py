"""Where the time of a replica's stages went: six shares of the window that add up to one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launcher.measure.spans import COMPUTE, LOADING
from launcher.measure.timeline import Intervals, Timeline, compute_window

SHARES = ("busy", "transfer", "weights", "bubble", "host_gap", "no_work")
BUSY, TRANSFER, WEIGHTS, BUBBLE, HOST_GAP, NO_WORK = range(len(SHARES))

Unit = tuple[int, int]  # (rank, stage): one device
Seconds = NDArray[np.float64]  # (6,): of a window, in the order of SHARES
Mask = NDArray[np.bool_]


def account(timelines: Sequence[Timeline], until: float | None = None) -> dict[Unit, Seconds]:
    """Seconds of each share for each (rank, stage) of one replica in one attempt.

    The window goes from the replica's first compute start to its last compute end, or to ``until`` where
    its devices were held for longer. A moment that is several things at once counts as the first of:

    - busy: the stage computes (prefill, decode);
    - transfer: bytes move to or from it;
    - weights: it waits for weights;
    - no work: its last work is over;
    - bubble: another stage of the replica computes;
    - no work: the replica has no request left (a ``no_work`` span on any of its ranks);
    - host gap: nobody computes though there is work.

    Spans may overlap. Where a long run's timelines hold only some windows, those that every rank holds are
    scaled to the whole. The result is empty if nothing was computed.
    """
    window = compute_window(timelines)
    if window is None:
        return {}
    begin, end = window[0], max(window[1], until or 0.0)
    covers = [timeline.covered(begin, end) for timeline in timelines]
    edges = _edges(timelines, covers, begin, end)
    whole = np.logical_and.reduce([_active(edges, cover) for cover in covers])
    lengths = np.diff(edges) * whole
    if not lengths.sum() > 0:
        return {}
    computing = _active(edges, *(_times(timeline, COMPUTE) for timeline in timelines))
    idle = np.full(len(lengths), HOST_GAP, np.uint8)
    idle[_active(edges, *(_times(timeline, ("no_work",)) for timeline in timelines))] = NO_WORK
    idle[computing] = BUBBLE
    scale = (end - begin) / lengths.sum()
    return {
        (timeline.rank, stage): scale
        * np.bincount(_paint(idle.copy(), edges, timeline, stage), lengths, len(SHARES))
        for timeline in timelines
        for stage in np.unique(timeline.select(*COMPUTE, "transfer", "weights")["stage"]).tolist()
    }


def shares(seconds: Seconds) -> dict[str, float]:
    """The parts of ``seconds`` by name, as fractions of their sum."""
    return dict(zip(SHARES, (seconds / seconds.sum()).tolist(), strict=True))


def _paint(
    states: NDArray[Any], edges: NDArray[Any], timeline: Timeline, stage: int
) -> NDArray[Any]:
    """``states`` between the edges, with what this stage did laid over what its replica was like."""
    busy = _times(timeline, COMPUTE, stage)
    transfer = _times(timeline, ("transfer",), stage)
    weights = _times(timeline, LOADING, stage)
    last = max(
        (times[:, 1].max() for times in (busy, transfer, weights) if len(times)), default=0.0
    )
    states[edges[:-1] >= last] = NO_WORK
    for state, times in ((WEIGHTS, weights), (TRANSFER, transfer), (BUSY, busy)):
        states[_active(edges, times)] = state
    return states


def _times(timeline: Timeline, kinds: Sequence[str], stage: int | None = None) -> Intervals:
    spans = timeline.select(*kinds)
    if stage is not None:
        spans = spans[spans["stage"] == stage]
    return np.stack([spans["start"], spans["end"]], axis=1)


def _edges(
    timelines: Sequence[Timeline], covers: list[Intervals], begin: float, end: float
) -> NDArray[Any]:
    """Every moment in the window at which anything begins or ends; between two of them all is constant."""
    moments = [timeline.spans[side] for timeline in timelines for side in ("start", "end")]
    moments += [cover.ravel() for cover in covers]
    return np.unique(np.concatenate([*moments, [begin, end]]).clip(begin, end))


def _active(edges: NDArray[Any], *intervals: Intervals) -> Mask:
    """Whether any of the intervals is on between each pair of neighbouring edges: shape (edges - 1,)."""
    times = np.concatenate(intervals).clip(edges[0], edges[-1])
    starts, ends = (np.searchsorted(edges, times[:, side]) for side in (0, 1))
    count = np.bincount(starts, minlength=len(edges)) - np.bincount(ends, minlength=len(edges))
    active: Mask = np.cumsum(count)[:-1] > 0
    return active
