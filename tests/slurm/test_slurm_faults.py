"""What a cluster does to a run: requeues, preemption, time limits, cut and dead nodes, a controller that is away.

Each test ends with the independent checker of tests/faults: every row once, in order, as in the undisturbed run.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
from checker import check
from cluster import Cluster
from jobs import command, journaled, launcher, mixed_rows, wait_for, write_job
from kills import Killer, Victim, victims
from on_slurm import ended, rows_of, state, submit, wait_complete

pytestmark = pytest.mark.slurm

ROWS = 160
PIPELINE = {
    "parallel": {"strategy": "pipeline", "stages": 2},
    "resources": {"device": "cpu", "nodes": 2},
}
ROW_BY_ROW = {"slots": 1}  # so that a run is not over before what is done to it
REPLICAS = {
    "parallel": {"strategy": "sequential", "replicas": 2},
    "resources": {"device": "cpu", "nodes": 2},
}


def job(folder: Path, **sections: Any) -> Path:
    return write_job(folder, mixed_rows(ROWS), **sections)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    two = {
        "strategy": "sequential",
        "replicas": 2,
    }  # with a thread each: they share two cores with others
    spec = job(folder, batch={"slots": 16}, parallel=two)
    launcher("run", spec, "--run-dir", folder / "run")
    return folder / "run"


def rank_of(cluster: Cluster, run: Path, number: int) -> Victim:
    """The process of a rank of the first attempt."""
    status = json.loads((run / "status" / f"w0000-a0001-r{number:04d}.json").read_text())
    (found,) = [
        victim
        for victim in victims(cluster, run)
        if (victim.role, victim.node) == ("rank", status["host"])
    ]
    return found


def test_five_requeues(
    fragile: Cluster, env: dict[str, str], tmp_path: Path, undisturbed: Path
) -> None:
    run = tmp_path / "run"
    (number,) = submit(job(tmp_path, batch={"slots": 2}), run, env)
    for attempt in range(1, 6):
        wait_for(lambda attempt=attempt: rows_of(run, attempt) > 5)
        fragile.scontrol("requeue", number)
    wait_complete(run, env)
    assert check(run, undisturbed) == []
    assert [end["kind"] for end in ended(run)] == [*["drained"] * 5, "done"]
    assert journaled(run) == ROWS, "what was done was done again"


def test_scancel_leaves_nothing_and_resume_goes_on(
    fragile: Cluster, env: dict[str, str], tmp_path: Path, undisturbed: Path
) -> None:
    run = tmp_path / "run"
    (number,) = submit(job(tmp_path, **REPLICAS), run, env)
    wait_for(lambda: journaled(run) > 20)
    fragile.scancel(number)
    fragile.wait_state(number, "CANCELLED")
    wait_for(lambda: not victims(fragile, run))
    assert state(run, env)["state"] == "stopped"
    launcher("resume", run, env=env)
    wait_complete(run, env)
    assert check(run, undisturbed) == []


def test_the_time_limit_while_a_rank_is_blocked(
    fragile: Cluster, env: dict[str, str], tmp_path: Path, undisturbed: Path
) -> None:
    run = tmp_path / "run"
    limits = {"drain": "60s", "step": "120s", "stall": "120s"}
    (number,) = submit(job(tmp_path, **PIPELINE, limits=limits), run, env)
    wait_for(lambda: journaled(run) > 20)
    assert rank_of(fragile, run, 1).signal(signal.SIGSTOP)
    time.sleep(1)  # the first stage waits for it by now, in a receive that has no deadline
    asked = time.time()
    fragile.scancel("--signal=USR2", number)  # what Slurm sends ahead of the limit
    (end,) = wait_for(lambda: ended(run))
    assert end["kind"] == "drained"
    assert end["ended"] - asked < 10, "Slurm may give no more time than that"
    wait_complete(run, env)
    assert check(run, undisturbed) == []


def test_preempted_by_a_higher_partition(
    fragile: Cluster, env: dict[str, str], tmp_path: Path, undisturbed: Path
) -> None:
    run = tmp_path / "run"
    submit(job(tmp_path, batch=ROW_BY_ROW, slurm={"partition": "low"}), run, env)
    wait_for(lambda: journaled(run) > 20)
    high = fragile.sbatch(
        "--partition=high", "-N4", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"
    )
    fragile.wait_state(high, "COMPLETED")
    wait_complete(run, env)
    assert check(run, undisturbed) == []
    assert ended(run)[0]["kind"] == "drained"


def test_a_zombie_behind_a_cut_network_changes_nothing(
    fragile: Cluster, env: dict[str, str], tmp_path: Path, undisturbed: Path
) -> None:
    run = tmp_path / "run"
    submit(job(tmp_path), run, env)
    wait_for(lambda: journaled(run) > 20)
    zombie = rank_of(fragile, run, 0)
    zombie.signal(signal.SIGSTOP)  # or it would finish the run before the second attempt opens
    fragile.cut(zombie.node)
    # What Slurm does by itself after 20 s.
    fragile.scontrol("update", f"node={zombie.node}", "state=down", "reason=cut")
    wait_for(lambda: rows_of(run, 2) > 5)
    journal = run / "journals" / "w0000-a0001-r0000.jsonl"
    fenced = journal.stat().st_size
    forge(journal, ROWS - 1)
    assert zombie.signal(signal.SIGCONT)
    fragile.heal(zombie.node)
    wait_complete(run, env)
    assert check(run, undisturbed) == []
    assert journal.stat().st_size > fenced
    wait_for(lambda: not [v for v in victims(fragile, run) if v.node == zombie.node])


def forge(journal: Path, row: int) -> None:
    """A whole record of a row that is not done yet, as the zombie could write it, with a text that is none of its."""
    record = json.loads(journal.read_bytes().splitlines()[0][9:])
    payload = json.dumps({**record, "index": row, "id": "zombie", "text": "zombie"}).encode()
    with journal.open("ab") as file:
        file.write(b"%08x %b\n" % (zlib.crc32(payload), payload))


def test_a_cut_node_is_noticed_and_named_and_the_work_goes_on(
    fragile: Cluster, env: dict[str, str], tmp_path: Path, undisturbed: Path
) -> None:
    run = tmp_path / "run"
    submit(job(tmp_path, **PIPELINE), run, env)
    wait_for(lambda: journaled(run) > 20)
    node = rank_of(fragile, run, 1).node
    cut = time.time()
    fragile.cut(node)
    (end,) = wait_for(lambda: ended(run))
    fragile.heal(node)  # else Slurm gives the job back only when it takes the node to be down
    assert (end["kind"], end["error"]["where"]) == ("failed", node)
    assert "out of reach" in end["error"]["what"]
    # Promised are 15 s, of a machine that is not busy; without the lifeline it were the 60 s of limits.stall.
    assert end["ended"] - cut < 45
    wait_complete(run, env)
    assert check(run, undisturbed) == []


def test_a_killed_agent_is_noticed_and_named(
    fragile: Cluster, env: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    submit(job(tmp_path, **REPLICAS), run, env)
    wait_for(lambda: journaled(run) > 20)
    node = rank_of(fragile, run, 1).node
    (agent,) = [v for v in victims(fragile, run) if (v.role, v.node) == ("agent", node)]
    killed = time.time()
    assert agent.kill()
    (end,) = wait_for(lambda: ended(run))
    assert (end["kind"], end["error"]["where"]) == ("failed", node)
    assert end["error"]["what"].startswith("the agent of node 1 died")
    assert end["ended"] - killed < 30, "the kernel tells at once; limits.stall would take longer"
    wait_for(lambda: not victims(fragile, run))
    assert state(run, env)["failure"]["where"] == node


@pytest.mark.skipif(
    "LAUNCHER_TEST_SLURMCTLD" not in os.environ,
    reason="Slurm may keep a node draining for minutes after it: set LAUNCHER_TEST_SLURMCTLD=1 and run it alone",
)
def test_slurmctld_is_restarted(
    fragile: Cluster, env: dict[str, str], tmp_path: Path, undisturbed: Path
) -> None:
    run = tmp_path / "run"
    submit(job(tmp_path, batch=ROW_BY_ROW), run, env)
    wait_for(lambda: journaled(run) > 20)
    fragile.stop_controller()
    try:
        before = journaled(run)
        said = launcher("status", run, "--json", env=env)
        found = json.loads(said.stdout)["state"]
        assert found == "complete" or (found == "running" and "squeue" in said.stderr)
        wait_for(lambda: journaled(run) > before or journaled(run) == ROWS)
    finally:
        fragile.start_controller()
    wait_complete(run, env)
    assert check(run, undisturbed) == []


def test_nothing_hangs_when_squeue_does(
    fragile: Cluster, env: dict[str, str], tmp_path: Path
) -> None:
    run, rows = tmp_path / "run", 3000  # more than are done while everybody waits
    (number,) = submit(write_job(tmp_path, rows), run, env)
    wait_for(lambda: journaled(run) > 20)
    squeue = tmp_path / "bin" / "squeue"
    squeue.write_text("#!/bin/sh\nexec sleep 600\n")
    squeue.chmod(0o755)
    asked = [start("status", run, "--json", env=env), start("list", "--json", env=env)]
    launcher("cancel", run, env=env)  # within the time that any command of a test has
    for process in asked:
        out, err = process.communicate(timeout=60)
        assert "squeue gave no answer in 10 s" in err
        found = json.loads(out)
        (found,) = found if isinstance(found, list) else [found]
        assert found["state"] in ("running", "unknown")
        assert found["jobs"] == {number: "unknown"}
    squeue.unlink()
    fragile.wait_state(number, "CANCELLED", "COMPLETED")
    assert state(run, env)["state"] == "stopped"
    assert 20 < journaled(run) < rows


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
        said = [json.loads(process.communicate(timeout=60)[0]) for process in both]
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


def test_eight_kills(
    fragile: Cluster, env: dict[str, str], tmp_path: Path, undisturbed: Path
) -> None:
    """A small one of benchmarks/faults.py, which does 40."""
    run = tmp_path / "run"
    spec = job(tmp_path, **REPLICAS, slurm={"array": 2}, batch={"slots": 1})
    submit(spec, run, env)
    killer = Killer(fragile, run, seed=7)
    while len(killer.strikes) < 8:
        done = journaled(run)
        wait_for(lambda done=done: journaled(run) > done + 5)
        list(killer.volley(4))
        wait_for(lambda: not victims(fragile, run) and not fragile.squeue())
        launcher("resume", run, env=env)
    wait_for((run / "manifest.json").exists, 240)
    assert check(run, undisturbed) == [], killer.strikes
