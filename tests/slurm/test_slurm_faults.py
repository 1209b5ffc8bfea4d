"""What a cluster does to a run: requeues, preemption, time limits, a controller that is away, kills at random.

Each test ends with the independent checker of tests/faults: every row once, in order, as in the undisturbed run.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from checker import check
from cluster import Cluster
from gate import Gate
from held_jobs import PIPELINE, REPLICAS, ROWS, SHARE, job, rank_of
from jobs import PATIENCE_S, command, journaled, launcher, wait_for
from kills import Killer, victims
from on_slurm import ended, state, submit, wait_complete

pytestmark = pytest.mark.slurm


def test_five_requeues_are_more_than_max_restarts_and_change_nothing(
    fragile: Cluster, env: dict[str, str], gate: Gate, tmp_path: Path, undisturbed: Path
) -> None:
    run = tmp_path / "run"
    (number,) = submit(job(tmp_path, slurm={"max_restarts": 1}), run, env)
    for attempt in range(1, 6):
        gate.wait(attempt=attempt)
        fragile.scontrol("requeue", number)
    gate.wait(attempt=6)
    gate.open()
    wait_complete(run, env)
    assert check(run, undisturbed) == []
    assert [end["kind"] for end in ended(run)] == ["drained"] * 5 + ["done"]
    assert journaled(run) == ROWS, "what was done was done again"


def test_scancel_leaves_nothing_and_resume_goes_on(
    fragile: Cluster, env: dict[str, str], gate: Gate, tmp_path: Path, undisturbed: Path
) -> None:
    run = tmp_path / "run"
    (number,) = submit(job(tmp_path, **REPLICAS), run, env)
    gate.wait(2)
    fragile.scancel(number)
    fragile.wait_state(number, "CANCELLED")
    wait_for(lambda: not victims(fragile, run))
    assert state(run, env)["state"] == "stopped"
    gate.open()
    launcher("resume", run, env=env)
    wait_complete(run, env)
    assert check(run, undisturbed) == []


def test_the_time_limit_while_a_rank_is_blocked(
    fragile: Cluster, env: dict[str, str], gate: Gate, tmp_path: Path, undisturbed: Path
) -> None:
    run = tmp_path / "run"
    (number,) = submit(job(tmp_path, **PIPELINE, limits={"drain": "240s"}), run, env)
    gate.wait()
    assert rank_of(fragile, run, 1).signal(signal.SIGSTOP)
    gate.open()
    time.sleep(1)  # the first stage waits for it by now, in a receive that has no deadline
    asked = time.time()
    fragile.scancel("--signal=USR2", number)  # what Slurm sends ahead of the limit
    (end,) = wait_for(lambda: ended(run))
    assert end["kind"] == "drained"
    # Promised are 10 s, of a machine that is not busy; limits.drain would be 240.
    assert end["ended"] - asked < 120
    wait_complete(run, env)
    assert check(run, undisturbed) == []


def test_preempted_by_a_higher_partition(
    fragile: Cluster, env: dict[str, str], gate: Gate, tmp_path: Path, undisturbed: Path
) -> None:
    run = tmp_path / "run"
    submit(job(tmp_path, slurm={"partition": "low"}), run, env)
    gate.wait()
    high = fragile.sbatch(
        "--partition=high", "-N4", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"
    )
    fragile.wait_state(high, "COMPLETED")
    gate.open()
    wait_complete(run, env)
    assert check(run, undisturbed) == []
    assert ended(run)[0]["kind"] == "drained"


def test_slurmctld_is_restarted(
    fragile: Cluster, env: dict[str, str], gate: Gate, tmp_path: Path, undisturbed: Path
) -> None:
    run = tmp_path / "run"
    submit(job(tmp_path), run, env)
    gate.wait()
    fragile.stop_controller()
    try:
        said = launcher("status", run, "--json", env=env)
        assert json.loads(said.stdout)["state"] == "running"
        assert "squeue" in said.stderr
        before = journaled(run)
        gate.let(3 * SHARE)
        wait_for(lambda: journaled(run) > before + SHARE)
    finally:
        fragile.start_controller()
    # A step that ends while slurmctld is away tries to say so once a minute, and keeps its node until then.
    wait_for(lambda: set(state(run, env)["jobs"].values()) == {"running"})
    gate.open()
    wait_complete(run, env)
    assert check(run, undisturbed) == []
    assert len(list(run.glob("attempts/w*"))) == 1


def test_nothing_hangs_when_squeue_does(
    fragile: Cluster, env: dict[str, str], gate: Gate, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    (number,) = submit(job(tmp_path), run, env)
    gate.wait()
    squeue = tmp_path / "bin" / "squeue"
    squeue.write_text("#!/bin/sh\nexec sleep 600\n")
    squeue.chmod(0o755)
    asked = [start("status", run, "--json", env=env), start("list", "--json", env=env)]
    launcher("cancel", run, env=env)  # within the time that any command of a test has
    for process in asked:
        out, err = process.communicate(timeout=PATIENCE_S)
        assert "squeue gave no answer in 10 s" in err
        found = json.loads(out)
        seen = found if isinstance(found, list) else [found]  # a list has this folder's runs, too
        (found,) = [each for each in seen if each["path"] == str(run)]
        assert found["state"] in ("running", "unknown")
        assert found["jobs"] == {number: "unknown"}
    squeue.unlink()
    fragile.wait_state(number, "CANCELLED", "COMPLETED")
    assert state(run, env)["state"] == "stopped"
    assert journaled(run) < ROWS


def start(*arguments: str | Path, env: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments),
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_of_two_at_once_one_wins(fragile: Cluster, env: dict[str, str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    spec = job(tmp_path, slurm={"begin": "now+1hour"})
    jobs = set()
    for words in (["submit", spec, "--run-dir", run], ["resume", run]):
        both = [start(*words, "--json", env=env) for _ in range(2)]
        said = [json.loads(process.communicate(timeout=PATIENCE_S)[0]) for process in both]
        assert sorted(process.returncode for process in both) == [0, 75], said
        winner, loser = sorted(said, key=lambda document: "error" in document)
        assert loser["error"] == "Busy"
        assert loser["where"] == str(run)
        if words[0] == "resume":
            assert "process " in loser["cause"] or "jobs " in loser["cause"]
        jobs |= set(winner["jobs"])
        assert fragile.squeue("--format=%i").split() == winner["jobs"]
        launcher("cancel", run, env=env)
        wait_for(lambda: not fragile.squeue("--format=%i").split())
    assert len(jobs) == 2


def test_kills_at_random(
    fragile: Cluster, env: dict[str, str], gate: Gate, tmp_path: Path, undisturbed: Path
) -> None:
    """A small one of benchmarks/faults.py, which does 40."""
    run = tmp_path / "run"
    submit(job(tmp_path, **REPLICAS, slurm={"array": 2}), run, env)
    killer = Killer(fragile, run, seed=7)
    for attempt in (1, 2):
        gate.wait(4 if attempt == 1 else 1, attempt)  # few rows may be left to some of the four
        assert list(killer.volley(2))
        launcher("cancel", run, env=env)  # whoever was spared waits at the gate
        wait_for(lambda: not victims(fragile, run) and not fragile.squeue())
        launcher("resume", run, env=env)
    gate.open()
    wait_for((run / "manifest.json").exists)
    assert check(run, undisturbed) == [], killer.strikes
