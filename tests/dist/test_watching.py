"""Watching a real run, its metrics, and being told how it ended: stopped first, then complete."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from gate import Gate
from jobs import PATIENCE_S, command, launcher, wait_for, write_job

STATES = ["complete", "stopped"]


def test_a_run_is_watched_stopped_resumed_and_told(tmp_path: Path) -> None:
    run, told = tmp_path / "run", tmp_path / "told"
    notify = {"command": f'echo "$LAUNCHER_STATE $LAUNCHER_ROWS" >> {told}', "on": STATES}
    spec, gate = write_job(tmp_path, 60, notify=notify), Gate(tmp_path / "gate", 30)
    with subprocess.Popen(
        command("run", spec, "--run-dir", run),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **gate.env},
    ) as child:
        wait_for((run / "metrics.prom").is_file)
        with subprocess.Popen(
            command("status", run, "--watch"), stdout=subprocess.PIPE, text=True
        ) as watching:
            gate.wait()
            launcher("cancel", run)
            shown = watching.communicate(timeout=PATIENCE_S)[0]
        child.communicate(timeout=PATIENCE_S)
    assert "of 60 rows" in shown
    assert watching.returncode == 0
    metrics = (run / "metrics.prom").read_text()
    assert 'launcher_complete{run="run"} 0' in metrics
    assert told.read_text().split()[0] == "stopped"
    launcher("resume", run)
    assert told.read_text().splitlines()[1:] == ["complete 60"]
    metrics = (run / "metrics.prom").read_text()
    assert 'launcher_rows{run="run",state="ok"} 60' in metrics
    assert 'launcher_complete{run="run"} 1' in metrics
    assert 'launcher_attempts_total{run="run"} 2' in metrics
    assert "complete" in launcher("status", run, "--watch").stdout


def test_a_resume_that_only_gathers_results_tells_it_too(tmp_path: Path) -> None:
    run = tmp_path / "run"
    spec = write_job(tmp_path, 20)
    crash = {"LAUNCHER_CRASH": "outputs.written:1:EIO"}
    launcher("run", spec, "--run-dir", run, code=75, env=crash)
    metrics = run / "metrics.prom"
    assert 'launcher_rows{run="run",state="ok"} 20' in metrics.read_text()
    assert 'launcher_complete{run="run"} 0' in metrics.read_text()
    launcher("resume", run)
    assert 'launcher_complete{run="run"} 1' in metrics.read_text()
    assert 'launcher_attempts_total{run="run"} 1' in metrics.read_text()
