"""Watching a real run, its metrics, and being told how it ended: stopped first, then complete."""

from __future__ import annotations

import subprocess
from pathlib import Path

from jobs import command, journaled, launcher, wait_for, write_job

STATES = ["complete", "stopped"]


def test_a_run_is_watched_stopped_resumed_and_told(tmp_path: Path) -> None:
    run, told = tmp_path / "run", tmp_path / "told"
    notify = {"command": f'echo "$LAUNCHER_STATE $LAUNCHER_ROWS" >> {told}', "on": STATES}
    spec = write_job(tmp_path, 500, notify=notify)
    with subprocess.Popen(
        command("run", spec, "--run-dir", run), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as child:
        wait_for((run / "metrics.prom").is_file)
        with subprocess.Popen(
            command("status", run, "--watch"), stdout=subprocess.PIPE, text=True
        ) as watching:
            wait_for(lambda: journaled(run) > 10)
            launcher("cancel", run)
            shown = watching.communicate(timeout=60)[0]
        child.communicate(timeout=60)
    assert "of 500 rows" in shown
    assert watching.returncode == 0
    metrics = (run / "metrics.prom").read_text()
    assert 'launcher_complete{run="run"} 0' in metrics
    assert told.read_text().split()[0] == "stopped"
    launcher("resume", run)
    assert told.read_text().splitlines()[1:] == ["complete 500"]
    metrics = (run / "metrics.prom").read_text()
    assert 'launcher_rows{run="run",state="ok"} 500' in metrics
    assert 'launcher_complete{run="run"} 1' in metrics
    assert 'launcher_attempts_total{run="run"} 2' in metrics
    assert "complete" in launcher("status", run, "--watch").stdout
