"""Pipelines over real ranks, through the command line: the texts are those of the unsplit model, whatever the
schedule, and whatever becomes of a rank."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from jobs import command, journaled, launcher, mixed_rows, texts, wait_for, write_job

from launcher.runtime import process

ROWS = 60
MANY = 400  # rows: long enough to be interrupted
PARTS = ("busy", "transfer", "weights", "bubble", "host_gap", "no_work")
TWO = {"strategy": "pipeline", "stages": 2}


@pytest.fixture(scope="module")
def unsplit(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the model says when it is whole."""
    folder = tmp_path_factory.mktemp("unsplit")
    spec = write_job(folder, mixed_rows(MANY), batch={"slots": 32})
    launcher("run", spec, "--run-dir", folder / "run")
    return texts(folder / "run")


def first(all_texts: dict[str, str], count: int) -> dict[str, str]:
    return {row["id"]: all_texts[row["id"]] for row in mixed_rows(count)}


@pytest.mark.parametrize(
    ("schedule", "groups"), [("naive", "auto"), ("gpipe", 3), ("ring", "auto"), ("ring", 1)]
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
    assert texts(tmp_path / "run") == first(unsplit, ROWS)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["schedule"] == schedule
    assert [(stage["stage"], stage["rank"]) for stage in summary["stages"]] == [(0, 0), (1, 1)]
    for stage in summary["stages"]:
        assert sum(stage[part] for part in PARTS) == pytest.approx(1.0)
        assert stage["busy"] > 0


def test_two_replicas_of_two_stages(tmp_path: Path, unsplit: dict[str, str]) -> None:
    spec = write_job(tmp_path, mixed_rows(MANY), parallel={**TWO, "replicas": 2})
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


def start(spec: Path, run: Path) -> subprocess.Popen[str]:
    """A run that is under way."""
    running = subprocess.Popen(
        command("run", spec, "--run-dir", run),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: (run / "journals").is_dir() and journaled(run) > 20)
    return running


def pids(run: Path) -> list[int]:
    """The ranks' processes."""
    return [json.loads(path.read_text())["pid"] for path in sorted((run / "status").glob("*.json"))]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_stage_is_named_and_resume_completes(
    victim: int, tmp_path: Path, unsplit: dict[str, str]
) -> None:
    run = tmp_path / "run"
    running = start(write_job(tmp_path, mixed_rows(MANY), parallel=TWO), run)
    processes = pids(run)
    os.kill(processes[victim], signal.SIGKILL)
    _, said = running.communicate(timeout=60)
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
    run = tmp_path / "run"
    running = start(write_job(tmp_path, mixed_rows(MANY), parallel=TWO), run)
    processes = pids(run)
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=60)
    assert running.returncode == 130
    (ended,) = run.glob("attempts/*/ended.json")
    assert json.loads(ended.read_text())["kind"] == "drained"
    phases = [json.loads(path.read_text())["phase"] for path in sorted((run / "status").glob("*"))]
    assert phases == ["finished", "finished"]
    assert all(process.start_time(pid) is None for pid in processes)
    assert 20 < journaled(run) < MANY
    launcher("resume", run)
    assert texts(run) == unsplit
    assert journaled(run) == MANY, "what was done was done again"
