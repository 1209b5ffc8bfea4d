"""A run's timelines as a Chrome trace, which https://ui.perfetto.dev and chrome://tracing open."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from launcher.measure.spans import KINDS
from launcher.measure.timeline import Timeline, read_timelines
from launcher.run import publish


def write_trace(timelines: Iterable[Path], path: Path, limit: int = 200_000) -> None:
    """Write the spans of these timelines to ``path``: one process per rank and attempt, one thread per stage,
    and one beside it for its transfers, which overlap its computing.

    Of more than ``limit`` spans the first and the last halves are shown, so that a viewer can open it;
    ``otherData.left_out`` counts the rest.
    """
    found = sorted(read_timelines(timelines, extras=True), key=lambda t: (t.attempt.name, t.rank))
    starts = np.concatenate([t.spans["start"] for t in found] or [np.empty(0)])
    origin = float(starts.min()) if len(starts) else 0.0
    head, tail = _cut(starts, limit)
    shown = [(t.spans["start"] <= head) | (t.spans["start"] >= tail) for t in found]
    left_out = len(starts) - sum(int(mask.sum()) for mask in shown)
    with publish(path) as temporary, temporary.open("w") as file:
        file.write('{"displayTimeUnit":"ms","otherData":')
        file.write(json.dumps({"epoch_s": origin, "left_out": left_out}))
        file.write(',"traceEvents":[\n')
        separator = ""
        for process, (timeline, mask) in enumerate(zip(found, shown, strict=True)):
            for event in _events(timeline, np.flatnonzero(mask), process, origin):
                file.write(separator + json.dumps(event, separators=(",", ":")))
                separator = ",\n"
        file.write("\n]}\n")


def _cut(starts: np.ndarray[Any, Any], limit: int) -> tuple[float, float]:
    """The start of the last span of the first half, and that of the first span of the last."""
    if len(starts) <= limit:
        return np.inf, np.inf
    ordered = np.sort(starts)
    half = limit // 2
    return float(ordered[half - 1]), float(ordered[len(ordered) - half])


def _events(
    timeline: Timeline, positions: np.ndarray[Any, Any], process: int, origin: float
) -> Iterator[dict[str, Any]]:
    name = f"rank {timeline.rank} on {timeline.host}, replica {timeline.replica}, {timeline.attempt.name}"
    yield _name("process_name", process, 0, name)
    yield {**_name("process_sort_index", process, 0, ""), "args": {"sort_index": process}}
    for stage in np.unique(timeline.spans["stage"]).tolist():
        yield _name("thread_name", process, 2 * stage, f"stage {stage}")
    for stage in np.unique(timeline.select("transfer")["stage"]).tolist():
        yield _name("thread_name", process, 2 * stage + 1, f"stage {stage} transfer")
    for position in positions.tolist():
        start, end, kind, stage, group, step = timeline.spans[position].tolist()
        yield {
            "ph": "X",
            "name": KINDS[kind],
            "cat": KINDS[kind],
            "pid": process,
            "tid": 2 * stage + (KINDS[kind] == "transfer"),
            "ts": round((start - origin) * 1e6, 1),
            "dur": round((end - start) * 1e6, 1),
            "args": {"group": group, "step": step, **timeline.extras.get(position, {})},
        }


def _name(what: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": process, "tid": thread, "args": {"name": name}}
