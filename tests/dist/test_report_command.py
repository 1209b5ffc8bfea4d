"""A real run leaves a report and a trace, and `launcher report` makes them again."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from jobs import launcher

PHASES = {"X": {"name", "cat", "pid", "tid", "ts", "dur"}, "M": {"name", "pid", "tid", "args"}}


@pytest.fixture(scope="module")
def run(whole_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(whole_run, tmp_path_factory.mktemp("report") / "run")


def test_a_run_writes_a_trace_that_perfetto_reads(run: Path) -> None:
    """https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU has the format."""
    trace = json.loads((run / "trace.json").read_text())
    events: list[dict[str, Any]] = trace["traceEvents"]
    for event in events:
        assert PHASES[event["ph"]] <= event.keys()
    spans = [event for event in events if event["ph"] == "X"]
    assert {event["name"] for event in spans} >= {"load", "prefill", "decode"}
    assert all(event["ts"] >= 0 and event["dur"] >= 0 for event in spans)
    summary = json.loads((run / "summary.json").read_text())
    busy_us = sum(event["dur"] for event in spans if event["name"] in ("prefill", "decode"))
    (stage,) = summary["stages"]
    assert busy_us / 1e6 == pytest.approx(stage["prefill_s"] + stage["decode_s"], rel=0.01)
    for thread in {(event["pid"], event["tid"]) for event in spans}:
        mine = [event for event in spans if (event["pid"], event["tid"]) == thread]
        mine.sort(key=lambda event: (event["ts"], -event["dur"]))
        for one, other in pairwise(mine):  # slices of a thread follow each other or nest
            apart = other["ts"] >= one["ts"] + one["dur"] - 1
            inside = other["ts"] + other["dur"] <= one["ts"] + one["dur"] + 1
            assert apart or inside, (one, other)
        assert any(
            event["name"] == "thread_name" and (event["pid"], event["tid"]) == thread
            for event in events
        )


def test_a_run_writes_its_report(run: Path) -> None:
    text = (run / "report.html").read_text()
    summary = json.loads((run / "summary.json").read_text())
    assert f'data-key="tokens_per_s" data-value="{summary["tokens_per_s"]}"' in text
    assert "No tokens were counted" not in text
    assert '<span class="state complete">' in text


def test_the_command_makes_it_again(run: Path) -> None:
    (run / "report.html").unlink()
    (run / "trace.json").unlink()
    shown = json.loads(launcher("report", run, "--json").stdout)
    assert shown == {"run": str(run), "report": str(run / "report.html"), "complete": True}
    assert (run / "report.html").stat().st_size < 3_000_000
    assert (run / "trace.json").exists()
    assert launcher("report", run).stdout == f"{run / 'report.html'}\n"


def test_the_report_of_a_run_that_stopped(tmp_path: Path, run: Path) -> None:
    (run / "manifest.json").rename(tmp_path / "manifest.json")
    (run / "outputs.jsonl").rename(tmp_path / "outputs.jsonl")
    try:
        done = launcher("report", run)
        assert "not complete: this is its report so far" in done.stdout
        assert "This run is not complete: 160 of 160 rows" in (run / "report.html").read_text()
    finally:
        (tmp_path / "manifest.json").rename(run / "manifest.json")
        (tmp_path / "outputs.jsonl").rename(run / "outputs.jsonl")
