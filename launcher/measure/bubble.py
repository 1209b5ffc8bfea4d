"""Where the time of a replica's stages went: six shares of the window that add up to one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Painting:
    """What every stage of a replica was at: ``states[rank, stage][i]``, an index into SHARES, from
    ``edges[i]`` to ``edges[i + 1]`` (seconds since the epoch). ``known`` is False where spans were left out of a
    long run's timelines."""

    edges: NDArray[np.float64]
    known: Mask
    states: dict[Unit, NDArray[np.uint8]]


def account(timelines: Sequence[Timeline], until: float | None = None) -> dict[Unit, Seconds]:
    """Seconds of each share for each (rank, stage) of one replica in one attempt, as ``paint`` tells them apart.

    Where a long run's timelines hold only some windows, those that every rank holds are scaled to the whole.
    The result is empty if nothing was computed.
    """
    painting = paint(timelines, until)
    if painting is None:
        return {}
    lengths = np.diff(painting.edges) * painting.known
    if not lengths.sum() > 0:
        return {}
    scale = (painting.edges[-1] - painting.edges[0]) / lengths.sum()
    return {
        unit: scale * np.bincount(states, lengths, len(SHARES))
        for unit, states in painting.states.items()
    }


def paint(timelines: Sequence[Timeline], until: float | None = None) -> Painting | None:
    """Which share each moment of each (rank, stage) counts as; None if nothing was computed.

    The window goes from the replica's first compute start to its last compute end, or to ``until`` where
    its devices were held for longer. A moment that is several things at once counts as the first of:

    - busy: the stage computes (prefill, decode);
    - transfer: bytes move to or from it;
    - weights: it waits for weights;
    - no work: its last work is over;
    - bubble: another stage of the replica computes; another shard of the same stage is none;
    - no work: the replica has no request left (a ``no_work`` span on any of its ranks);
    - host gap: no other stage computes, and this one does not though there is work.

    Spans may overlap.
    """
    window = compute_window(timelines)
    if window is None:
        return None
    begin, end = window[0], max(window[1], until or 0.0)
    covers = [timeline.covered(begin, end) for timeline in timelines]
    edges = _edges(timelines, covers, begin, end)
    known = np.logical_and.reduce([_active(edges, cover) for cover in covers])
    units = [
        (timeline, stage)
        for timeline in timelines
        for stage in np.unique(timeline.select(*COMPUTE, "transfer", "weights")["stage"]).tolist()
    ]
    computing = _computing(edges, units)
    count = np.sum([*computing.values()], axis=0)
    idle = np.full(len(known), HOST_GAP, np.uint8)
    idle[_active(edges, *(_times(timeline, ("no_work",)) for timeline in timelines))] = NO_WORK
    states = {
        (timeline.rank, stage): _paint(
            np.where(count > computing[stage], np.uint8(BUBBLE), idle), edges, timeline, stage
        )
        for timeline, stage in units
    }
    return Painting(edges, known, states)


def shares(seconds: Seconds) -> dict[str, float]:
    """The parts of ``seconds`` by name, as fractions of their sum."""
    return dict(zip(SHARES, (seconds / seconds.sum()).tolist(), strict=True))


def _computing(edges: NDArray[Any], units: Sequence[tuple[Timeline, int]]) -> dict[int, Mask]:
    """Where each stage computes, on any of its ranks."""
    return {
        stage: _active(
            edges, *(_times(each, COMPUTE, stage) for each, own in units if own == stage)
        )
        for stage in {stage for _, stage in units}
    }


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
    if not len(times):
        return np.zeros(len(edges) - 1, np.bool_)
    starts, ends = (np.searchsorted(edges, times[:, side]) for side in (0, 1))
    count = np.bincount(starts, minlength=len(edges)) - np.bincount(ends, minlength=len(edges))
    active: Mask = np.cumsum(count)[:-1] > 0
    return active
