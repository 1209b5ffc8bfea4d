"""Real kills: rows are neither lost nor doubled, the texts are those of an undisturbed run, nothing survives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from checker import check
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
from killer import processes

from launcher.runtime import process

ROWS, SHARE = 160, 20  # of a run, and of a rank that then waits at the gate
REPLICAS = {"strategy": "sequential", "replicas": 2}


def start(gate: Gate, *words: str | Path) -> subprocess.Popen[str]:
    """A run that is under way or resumed."""
    return subprocess.Popen(
        command(*words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **gate.env},
    )


def held(folder: Path, ranks: int = 1, **sections: Any) -> subprocess.Popen[str]:
    """A run that is under way, and held there: each rank has finished more than ten rows."""
    spec, gate = write_job(folder, mixed_rows(ROWS), **sections), Gate(folder / "gate", SHARE)
    running = start(gate, "run", spec, "--run-dir", folder / "run")
    gate.wait(ranks)
    wait_for(lambda: journaled(folder / "run") > 10 * ranks)
    return running


def noticed_after(ended: Path, moment: float) -> float:
    """Seconds from ``moment`` (of the clock) until the run directory said how the attempt ended."""
    return ended.stat().st_mtime - moment


def test_kill_9_of_every_process_and_resume(
    tmp_path: Path, whole_texts: Callable[[int], dict[str, str]]
) -> None:
    """One run, whose ranks, launcher, agent and command are killed in turn."""
    run, gate = tmp_path / "run", Gate(tmp_path / "gate", SHARE // 2)
    spec = write_job(tmp_path, mixed_rows(ROWS), parallel=REPLICAS)
    words: list[str | Path] = ["run", spec, "--run-dir", run]
    for attempt, victim in enumerate(("rank 0", "rank 1", "accelerate", "agent", "command"), 1):
        running = start(gate, *words)
        gate.wait(2, attempt)
        found = processes(run, running.pid)
        killed = time.time()
        os.kill(found[victim], signal.SIGKILL)
        _, said = running.communicate(timeout=PATIENCE_S)
        pids = list(found.values())
        wait_for(lambda pids=pids: not any(map(process.start_time, pids)))
        if victim not in ("agent", "command"):
            # docs/faults.md promises 2 s of a machine that is not busy; the deadlines of `limits` are 240 s.
            ended = run / "attempts" / f"w0000-a{attempt:04d}" / "ended.json"
            assert noticed_after(ended, killed) < 120
        if victim != "command":
            assert running.returncode == 75, said
            assert "launcher resume" in said
        if victim.startswith("rank"):
            assert f"{victim} on {os.uname().nodename}" in said
        assert not (run / "manifest.json").exists()
        words = ["resume", run]
    launcher(*words)
    assert texts(run) == whole_texts(ROWS)
    assert check(run) == []
    assert journaled(run) == ROWS, "a finished row was computed again"
    assert json.loads(launcher("verify", run, "--json").stdout)["ok"]


def test_a_run_that_is_cancelled_and_whose_input_is_edited_then(tmp_path: Path) -> None:
    run, running = tmp_path / "run", held(tmp_path)
    busy = launcher("resume", run, code=75)
    assert "running" in busy.stderr
    launcher("cancel", run)
    running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 75
    status = json.loads(launcher("status", run, "--json").stdout)
    assert status["state"] == "stopped"
    assert 10 < status["rows"]["done"] < ROWS
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_bytes(prompts.read_bytes().replace(b"+", b"-"))
    refused = launcher("resume", run, code=3)
    assert str(prompts) in refused.stderr
    assert not (run / "outputs.jsonl").exists()


def test_a_stopped_rank_is_noticed_and_named(tmp_path: Path) -> None:
    # Longer than the other rank may be kept from showing a sign of its own on a busy machine.
    running = held(tmp_path, 2, parallel=REPLICAS, limits={"stall": "10s"})
    stopped = time.time()
    os.kill(processes(tmp_path / "run")["rank 1"], signal.SIGSTOP)
    _, said = running.communicate(timeout=PATIENCE_S)
    (ended,) = (tmp_path / "run").glob("attempts/*/ended.json")
    assert noticed_after(ended, stopped) > 5, "it shows one twice a second"
    assert running.returncode == 75
    assert "rank 1 has shown no sign of life for limits.stall (10 s)" in said
