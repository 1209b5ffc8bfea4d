"""Pipelines over real ranks, through the command line: the texts are those of the unsplit model, whatever the
schedule, and whatever becomes of a rank."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from gate import Gate
from jobs import (
    PATIENCE_S,
    command,
    journaled,
    launcher,
    mixed_rows,
    texts,
    wait_for,
    write_job,
)

from launcher.runtime import process

ROWS = 60
HELD_AT = 40  # rows: those of a run that is interrupted
PARTS = ("busy", "transfer", "weights", "bubble", "host_gap", "no_work")
TWO = {"strategy": "pipeline", "stages": 2}


@pytest.fixture(scope="module")
def unsplit(whole_texts: Callable[[int], dict[str, str]]) -> dict[str, str]:
    return whole_texts(ROWS)


@pytest.mark.parametrize(
    ("schedule", "groups"), [("naive", "auto"), ("gpipe", 3), ("ring", "auto")]
)
def test_texts_are_those_of_the_whole_model(
    schedule: str, groups: str | int, tmp_path: Path, unsplit: dict[str, str]
) -> None:
    spec = write_job(
        tmp_path,
        mixed_rows(ROWS),
        parallel={**TWO, "schedule": schedule},
        batch={"slots": 4, "groups": groups, "prefill_chunk": 5},
    )
    launcher("run", spec, "--run-dir", tmp_path / "run")
    assert texts(tmp_path / "run") == unsplit
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["schedule"] == schedule
    assert [(stage["stage"], stage["rank"]) for stage in summary["stages"]] == [(0, 0), (1, 1)]
    for stage in summary["stages"]:
        assert stage["weights_bytes"] == stage["predicted"]["weights_bytes"]
        assert 0 < stage["kv_bytes"] <= stage["predicted"]["kv_bytes"]
        assert sum(stage[part] for part in PARTS) == pytest.approx(1.0)
        assert stage["busy"] > 0


def test_two_replicas_of_two_stages(tmp_path: Path, unsplit: dict[str, str]) -> None:
    spec = write_job(tmp_path, mixed_rows(ROWS), parallel={**TWO, "replicas": 2})
    launcher("run", spec, "--run-dir", tmp_path / "run")
    assert texts(tmp_path / "run") == unsplit
    assert [p.name[-10:] for p in sorted((tmp_path / "run" / "journals").glob("w*"))] == [
        "r0000.jsonl"[-10:],
        "r0002.jsonl"[-10:],
    ]
    stages = json.loads((tmp_path / "run" / "summary.json").read_text())["stages"]
    assert [(s["replica"], s["stage"], s["rank"]) for s in stages] == [
        (0, 0, 0),
        (0, 1, 1),
        (1, 0, 2),
        (1, 1, 3),
    ]


def start(folder: Path) -> subprocess.Popen[str]:
    """A run that is under way, and held there."""
    spec = write_job(folder, mixed_rows(ROWS), parallel=TWO)
    running = subprocess.Popen(
        command("run", spec, "--run-dir", folder / "run"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **Gate(folder / "gate", HELD_AT, patient=True).env},
    )
    wait_for(lambda: journaled(folder / "run") > 8)  # the others may be in slots
    return running


def pids(run: Path) -> list[int]:
    """The ranks' processes."""
    return [json.loads(path.read_text())["pid"] for path in sorted((run / "status").glob("*.json"))]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_stage_is_named_and_resume_completes(
    victim: int, tmp_path: Path, unsplit: dict[str, str]
) -> None:
    run, running = tmp_path / "run", start(tmp_path)
    processes = pids(run)
    os.kill(processes[victim], signal.SIGKILL)
    _, said = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 75, said
    assert f"rank {victim} on {os.uname().nodename}" in said
    # The agent or the launcher of the ranks, whoever notices first.
    assert re.search(rf"rank {victim} (ended with signal SIGKILL|died)", said)
    assert all(process.start_time(pid) is None for pid in processes)
    launcher("resume", run)
    assert texts(run) == unsplit


def test_interrupt_drains_all_stages_and_resume_goes_on(
    tmp_path: Path, unsplit: dict[str, str]
) -> None:
    run, running = tmp_path / "run", start(tmp_path)
    processes = pids(run)
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 130
    (ended,) = run.glob("attempts/*/ended.json")
    assert json.loads(ended.read_text())["kind"] == "drained"
    phases = [json.loads(path.read_text())["phase"] for path in sorted((run / "status").glob("*"))]
    assert phases == ["finished", "finished"]
    assert all(process.start_time(pid) is None for pid in processes)
    assert 8 < journaled(run) < ROWS
    launcher("resume", run)
    assert texts(run) == unsplit
    assert journaled(run) == ROWS, "what was done was done again"
