"""Trace: a Chrome trace that viewers open, however long the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from launcher.measure.spans import Recorder
from launcher.measure.trace import write_trace


def record(folder: Path, rank: int, steps: int) -> Path:
    path = folder / f"{rank}.jsonl"
    clock = {"monotonic": 0.0, "epoch": 1_700_000_000.0, "offset": 0.0}
    header = {
        "rank": rank,
        "replica": 0,
        "host": f"n{rank}",
        "attempt": "w0000-a0001",
        "clock": clock,
    }
    recorder = Recorder(path, header)
    for step in range(steps):
        recorder.add("decode", step + 1, step + 1.5, stage=rank, group=step % 2, step=step, rows=8)
        recorder.add("transfer", step + 1.5, step + 1.75, stage=rank, step=step)
    recorder.close()
    return path


def write(paths: list[Path], target: Path, **settings: int) -> dict[str, Any]:
    write_trace(paths, target, **settings)
    document: dict[str, Any] = json.loads(target.read_text())
    return document


def test_spans_are_complete_events_with_names_and_args(tmp_path: Path) -> None:
    trace = write([record(tmp_path, rank, 3) for rank in (1, 0)], tmp_path / "trace.json")
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert len(events) == 12
    assert events[0] == {
        "ph": "X",
        "name": "decode",
        "cat": "decode",
        "pid": 0,
        "tid": 0,
        "ts": 0,
        "dur": 500_000,
        "args": {"group": 0, "step": 0, "rows": 8},
    }
    assert {(event["pid"], event["tid"]) for event in events} == {(0, 0), (0, 1), (1, 2), (1, 3)}
    names = {
        (event["pid"], event["tid"], event["name"]): event["args"]["name"]
        for event in trace["traceEvents"]
        if event["name"] in ("process_name", "thread_name")
    }
    assert names == {
        (0, 0, "process_name"): "rank 0 on n0, replica 0, w0000-a0001",
        (0, 0, "thread_name"): "stage 0",
        (0, 1, "thread_name"): "stage 0 transfer",
        (1, 0, "process_name"): "rank 1 on n1, replica 0, w0000-a0001",
        (1, 2, "thread_name"): "stage 1",
        (1, 3, "thread_name"): "stage 1 transfer",
    }
    assert trace["otherData"] == {"epoch_s": 1_700_000_001.0, "left_out": 0}


def test_a_long_trace_shows_its_ends_and_says_so(tmp_path: Path) -> None:
    trace = write([record(tmp_path, 0, 500)], tmp_path / "trace.json", limit=100)
    shown = [event["args"]["step"] for event in trace["traceEvents"] if event["ph"] == "X"]
    assert shown == [*sorted([*range(25)] * 2), *sorted([*range(475, 500)] * 2)]
    assert trace["otherData"]["left_out"] == 900


def test_a_run_without_spans_has_an_empty_trace(tmp_path: Path) -> None:
    assert write([tmp_path / "none.jsonl"], tmp_path / "trace.json")["traceEvents"] == []
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json"]
