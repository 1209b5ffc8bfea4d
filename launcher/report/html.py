"""The report of a run: one HTML file that needs nothing else, from plan, summary and timelines."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from launcher import __version__
from launcher.disk import private
from launcher.job.redact import redact
from launcher.measure import trace
from launcher.measure.timeline import Timeline, read_timelines
from launcher.plan.plan import Plan
from launcher.report import bars, cells, charts, facts, lanes, packed, units
from launcher.report.compare import tokens_of
from launcher.report.measured import alive_interval, statuses
from launcher.report.summary import build_summary
from launcher.run import Run, publish, read_json, write_json

HERE = Path(__file__).parent
SCRIPTS = ("report.js", "report_input.js")
MOST_STAGES = 128  # rows of a table
SHARE_NAMES = {name: name.replace("_", " ") for name in bars.SHARES}


@private()
def write_report(run: Run) -> None:
    """Publish ``run.report``; summary and trace, too, where a complete run lacks them.

    Of a run that is not complete the trace is made anew, and the summary is in the report alone: summary.json is
    that of a complete run. Raises LauncherError and OSError.
    """
    under_way = not facts.is_complete(run)
    _write(run, trace_anew=not run.manifest.exists())
    if under_way and facts.is_complete(run):
        # Completed meanwhile: what was just written may have taken the place of the final files.
        _write(run, trace_anew=True)


def render(run: Run) -> str:
    """The report as HTML, of what there is so far if the run is not complete."""
    script = "\n".join((HERE / name).read_text() for name in SCRIPTS)
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "amount": units.amount,
        "clean": cells.clean,
        "count": units.count,
        "duration": units.duration,
        "host": cells.host,
        "latency": _latency,
        "moment": facts.moment,
        "percent": units.percent,
        "size": units.size,
    }
    return environment.get_template("report.html").render(
        script=Markup(script),
        style=Markup((HERE / "report.css").read_text()),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        version=__version__,
        now=time.time(),
        units=units,
        shares=SHARE_NAMES,
        most_stages=MOST_STAGES,
        **_content(run),
    )


def _write(run: Run, trace_anew: bool) -> None:
    if run.manifest.exists() and not run.summary.exists():
        write_json(run.summary, build_summary(run, facts.counts_so_far(run)))
    if trace_anew or not run.trace.exists():
        trace.write_trace(run.timelines(), run.trace)
    text = render(run)
    with publish(run.report) as temporary:
        temporary.write_text(text)


def _content(run: Run) -> dict[str, Any]:
    summary, attempts, spec = (
        facts.find_summary(run),
        facts.attempt_rows(run),
        facts.spec_facts(run),
    )
    plan = Plan.read(run.plan)
    timelines = read_timelines(run.timelines())
    alive = [
        interval
        for interval in (_alive(run, a, timelines) for a in run.list_attempts())
        if interval
    ]
    axis = lanes.Axis(alive)
    window = lanes.window_on_axis(timelines, axis)
    return {
        "name": run.name,
        "path": str(run.path),
        "state": facts.state_of(run, attempts),
        "summary": summary,
        "tokens_of": tokens_of(plan.task),
        "plan": plan,
        "facts": facts.in_short(plan, summary, spec["model"]),
        "when": facts.when(alive),
        "hosts": _hosts(summary["stages"]),
        "attempts": attempts,
        "row_errors": facts.row_errors(run),
        "spec": spec["text"],
        "script_text": redact(plan.script) if plan.script else None,
        "place": _places(summary["stages"]),
        "tokens": charts.tokens_over_time(timelines, axis, window),
        "latencies": charts.latencies(summary, timelines),
        "memory": charts.memory(summary, plan),
        "comparison": charts.comparison(summary),
        "stage_comparison": charts.stage_comparison(summary),
        "timeline": _timeline(timelines, axis, window, summary["stages"]),
    }


def _alive(run: Run, attempt: Any, timelines: Sequence[Timeline]) -> tuple[float, float] | None:
    ranks = {status.rank: status for status in statuses(run, attempt)}
    spans = [t.spans for t in timelines if t.attempt == attempt and len(t.spans)]
    seen = [(float(s["start"].min()), float(s["end"].max())) for s in spans]
    return alive_interval(read_json(run.attempt_file(attempt, "attempt")), ranks, seen)


def _timeline(
    timelines: Sequence[Timeline],
    axis: lanes.Axis,
    window: tuple[float, float],
    stages: Sequence[Mapping[str, Any]],
) -> dict[str, Any] | None:
    """What report.js draws; None without spans."""
    found = lanes.build_lanes(timelines, axis)
    if not any(len(lane.items) for lane in found):
        return None
    document = packed.pack(found, axis.length)
    tick, place = document["tick_s"], _places(stages)
    known = _of_lanes(stages)
    for lane, row in zip(found, document["lanes"], strict=False):
        stage = known.get((lane.world, lane.rank, lane.stage), vars(lane))
        layers = stage.get("layers")
        row["label"] = place(stage)
        row["title"] = f"rank {lane.rank} on {cells.clean(lane.host)}" + (
            f", layers {layers[0]}-{layers[1]}" if layers else ""
        )
    return {
        **document,
        "window": [round(moment / tick) for moment in window],
        "cuts": [round(moment / tick) for moment in axis.cuts],
        "left_out": len(found) - len(document["lanes"]),
    }


def _of_lanes(stages: Sequence[Mapping[str, Any]]) -> dict[tuple[int, int, int], dict[str, Any]]:
    """By world, rank and stage, as lanes are; where one rank has several shards, they are one entry without number."""
    known: dict[tuple[int, int, int], dict[str, Any]] = {}
    for stage in stages:
        key = (stage["world"], stage["rank"], stage["stage"])
        known[key] = {**stage, "shard": None} if key in known else {**stage}
    return known


def _places(stages: Sequence[Mapping[str, Any]]) -> Any:
    """How a stage is called: by its world and replica, too, where there are several, and as stage 1.0 by its shard."""
    several = [key for key in ("world", "replica") if len({stage[key] for stage in stages}) > 1]
    number = cells.numbers(stages)
    alone = len({number(stage) for stage in stages}) == 1 and several

    def place(stage: Mapping[str, Any]) -> str:
        parts = [f"{key} {stage[key]}" for key in several]
        return ", ".join(parts if alone else [*parts, f"stage {number(stage)}"])

    return place


def _latency(seconds: float | None) -> str:
    """A duration, in milliseconds where it is short."""
    short = seconds is not None and seconds < 1
    return f"{units.amount(1000 * (seconds or 0.0))} ms" if short else units.duration(seconds)


def _hosts(stages: Sequence[Mapping[str, Any]]) -> str:
    names = sorted({cells.host(stage["host"]) for stage in stages if stage["host"]})
    shown = ", ".join(names[:6])
    return shown + (f" and {len(names) - 6} more" if len(names) > 6 else "")
