"""Figures behind the report's charts: tokens/s over time, latencies, memory, predicted beside measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from launcher.measure.spans import COMPUTE
from launcher.measure.timeline import Timeline
from launcher.plan.plan import Plan
from launcher.report.compare import SHOW, of_run, of_stages, off
from launcher.report.lanes import Axis
from launcher.report.measured import Interval

MOST_COLUMNS = 160


def tokens_over_time(
    timelines: Sequence[Timeline], axis: Axis, window: Interval
) -> dict[str, Any] | None:
    """New tokens per second of all ranks together, in equal parts of ``window`` (seconds on the axis).

    Tokens that a later attempt made again count each time. None where none was counted.
    """
    counted = [timeline for timeline in timelines if timeline.tokens]
    begin, end = window
    if not counted or end <= begin:
        return None
    columns = int(min(MOST_COLUMNS, max(12, (end - begin) / 0.1)))
    edges = np.linspace(begin, end, columns + 1)
    made = np.zeros(columns + 1)
    for timeline in counted:
        moments, counts = zip(*timeline.tokens, strict=True)
        first = timeline.select(*COMPUTE)["start"].min(initial=moments[0])
        made += np.interp(edges, axis.at(np.array([first, *moments])), [0, *counts], left=0)
    if not made[-1]:
        return None
    rates = np.diff(made) / np.diff(edges)
    top = nice_above(float(rates.max()))
    return {
        "begin": begin,
        "end": end,
        "top": top,
        "mean": float(made[-1] / (end - begin)),
        "columns": [
            (float(a), float(b), float(rate))
            for a, b, rate in zip(edges[:-1], edges[1:], rates, strict=True)
        ],
    }


def nice_above(value: float) -> float:
    """The least of 1, 1.5, 2, 3, 4, 6, 8 times a power of ten that is not below ``value``."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 1.5, 2, 3, 4, 6, 8, 10) if step * power >= value)


def latencies(summary: dict[str, Any], timelines: Sequence[Timeline]) -> list[dict[str, Any]]:
    """Mean, p50 and p95 in seconds: of the time to first token, and of the steps that are in the timelines."""
    rows = [{"label": "First token", **summary["ttft_s"]}]
    for kind in COMPUTE:
        spans = [timeline.select(kind) for timeline in timelines]
        took = np.concatenate([s["end"] - s["start"] for s in spans] or [np.empty(0)])
        if len(took):
            p50, p95 = np.percentile(took, [50, 95]).tolist()
            row = {"label": f"{kind.title()} step", "mean": float(took.mean())}
            rows.append({**row, "p50": p50, "p95": p95})
    return [row for row in rows if row["mean"] is not None]


def memory(summary: dict[str, Any], plan: Plan) -> list[dict[str, Any]]:
    """Per stage: bytes measured at the peak, planned, and there; ``of`` is what a full bar stands for."""
    planned = {(device.rank, device.stage, device.shard): device for device in plan.devices}
    rows = []
    for stage in summary["stages"]:
        device = planned.get((stage["rank"], stage["stage"], stage.get("shard", 0)))
        row = {
            "stage": stage,
            "measured": stage["peak_memory_bytes"],
            "planned": device.peak_bytes if device else None,
            "capacity": device.capacity_bytes if device else None,
        }
        rows.append(row)
    whole = max((value for row in rows for value in _bytes(row)), default=0) or 1
    return [{**row, "of": max(row["capacity"] or whole, *_bytes(row), 1)} for row in rows]


def comparison(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The pairs of the whole run of which one side is known, with how they are shown."""
    return [_shown(pair) for pair in of_run(summary["compared"]) if _known(pair)]


def stage_comparison(summary: dict[str, Any]) -> dict[str, Any]:
    """``rows``: the devices of which the plan said something, each with its pairs under the ``labels``."""
    pairs = [_shown(pair) for pair in of_stages(summary["compared"])]
    told = {pair["figure"] for pair in pairs if pair["predicted"] is not None}
    rows: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        if pair["figure"] in told:
            row = rows.setdefault(str(pair["place"]), {"stage": pair["place"], "pairs": []})
            row["pairs"].append(pair)
    labels = {pair["figure"]: pair["label"] for pair in pairs if pair["figure"] in told}
    return {"labels": list(labels.values()), "rows": list(rows.values())}


def _shown(pair: Mapping[str, Any]) -> dict[str, Any]:
    return {**pair, "show": SHOW[pair["unit"]], "off": off(pair)}


def _known(pair: Mapping[str, Any]) -> bool:
    return pair["predicted"] is not None or pair["measured"] is not None


def _bytes(row: dict[str, Any]) -> list[float]:
    return [row[name] for name in ("measured", "planned", "capacity") if row[name]]
