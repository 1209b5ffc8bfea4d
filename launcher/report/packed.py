"""The timeline as the report's script reads it: packed numbers, all spans of a short run, parts of a long one."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launcher.report.lanes import SHOWN, Items, Lane, coverage
from launcher.report.measured import Interval

MOST_ITEMS = 100_000  # in the page, of all lanes together: 20 bytes each
MOST_LANES = 96
BIN_BYTES = 500_000
TICKS = 2**31


def pack(lanes: Sequence[Lane], length: float, most: int = MOST_ITEMS) -> dict[str, Any]:
    """``lanes`` of a run of ``length`` seconds as JSON.

    Times are counted in ticks of ``tick_s``. Where there are more than ``most`` items, those of the ``detail``
    intervals are there (the run's beginning, middle and end), and for the rest ``bins``: how much of each of
    equal parts of the run went to each kind, 255 being all of it.
    """
    shown = lanes[:MOST_LANES]
    tick = max(1e-6, length / TICKS)
    total = sum(len(lane.items) for lane in shown)
    detail = _detail(shown, most) if total > most else [(0.0, length)]
    count = min(4096, BIN_BYTES // (len(shown) * len(SHOWN))) if total > most else 0
    edges = np.linspace(0.0, length, count + 1)
    return {
        "tick_s": tick,
        "length": round(length / tick),
        "detail": [[int(begin / tick), int(np.ceil(end / tick))] for begin, end in detail],
        "bins": count,
        "kinds": SHOWN,
        "items": total,
        "lanes": [
            {
                "place": [lane.world, lane.replica, lane.stage, lane.rank],
                **_columns(_within(lane.items, detail), tick),
                "bins": _bins(lane.items, edges) if count else "",
            }
            for lane in shown
        ],
    }


def _detail(lanes: Sequence[Lane], most: int) -> list[Interval]:
    """Three intervals that hold about ``most`` items together, a third each."""
    starts = np.sort(np.concatenate([lane.items["start"] for lane in lanes]))
    third = most // 3
    middle = len(starts) // 2 - third // 2
    cuts = [(0, third), (middle, middle + third), (len(starts) - third, len(starts))]
    return [(float(starts[first]), float(starts[end - 1])) for first, end in cuts]


def _within(items: Items, intervals: Sequence[Interval]) -> Items:
    kept = [(items["start"] < end) & (items["end"] > begin) for begin, end in intervals]
    return items[np.logical_or.reduce(kept)]


def _columns(items: Items, tick: float) -> dict[str, Any]:
    start, end = (np.rint(items[side] / tick) for side in ("start", "end"))
    return {
        "count": len(items),
        "start": _base64(start, "<u4"),
        "ticks": _base64(np.maximum(end - start, 0), "<u4"),
        "step": _base64(items["step"], "<i4"),
        "group": _base64(items["group"], "<i2"),
        "kind": _base64(items["kind"], "<u1"),
    }


def _bins(items: Items, edges: NDArray[np.float64]) -> str:
    """One byte per bin and kind, the kinds of a bin beside each other."""
    width = edges[1] - edges[0]
    parts = [coverage(items, kind, edges) / width for kind in range(len(SHOWN))]
    return _base64(np.rint(np.stack(parts, axis=1).clip(0, 1) * 255), "<u1")


def _base64(values: NDArray[Any], form: str) -> str:
    return base64.b64encode(values.astype(form).tobytes()).decode()
