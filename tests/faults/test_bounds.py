"""Runs are bounded: each deadline of `limits` names who broke it, and what fails the same way again is not tried for ever."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from checker import check
from gate import Gate, hook
from jobs import PATIENCE_S, command, launcher, wait_for, write_job

from launcher import environ, ledger, state
from launcher.errors import NodeLost, RunFailed, SlurmRefused
from launcher.job.load import load_resolved
from launcher.job.spec import JobSpec
from launcher.records import Attempt
from launcher.report.sofar import behind
from launcher.run import Run, read_json, write_json
from launcher.runtime import agent, failure, process, restarts
from launcher.runtime.launch import World, launch_argv
from launcher.runtime.oom import OomKills
from launcher.runtime.outcome import Outcome
from launcher.runtime.rendezvous import Node

REPLICAS = {"strategy": "sequential", "replicas": 2}


def start(words: list[str | Path], env: dict[str, str]) -> subprocess.Popen[str]:
    pipe, env = subprocess.PIPE, {**os.environ, **env}
    return subprocess.Popen(command(*words), stdout=pipe, stderr=pipe, text=True, env=env)


# Rank 1 stops as soon as there is one; the agent's clock is half an hour ahead from the moment that the test says so.
NEVER_JOINS = """
import os, signal, sys, time
from pathlib import Path
from types import SimpleNamespace
folder = Path({folder!r})
if sys.orig_argv[-3:-1] == ["-m", "launcher.runtime.rank"] and os.environ.get("RANK") == "1":
    (folder / "stopped").write_text(str(os.getpid()))
    os.kill(os.getpid(), signal.SIGSTOP)
if sys.orig_argv[-2:-1] == ["launcher.runtime.agent"]:
    from launcher.runtime import watchdog
    ahead = lambda: time.monotonic() + 1800 * (folder / "later").exists()
    watchdog.time = SimpleNamespace(sleep=time.sleep, monotonic=ahead)
"""


def test_a_rank_that_never_joins_is_named(tmp_path: Path) -> None:
    env = hook(tmp_path / "hook", NEVER_JOINS.format(folder=str(tmp_path)))
    spec, run = write_job(tmp_path, 10, parallel=REPLICAS), Run(tmp_path / "run")
    running = start(["run", spec, "--run-dir", run.path], env)
    other = run.status(Attempt(0, 1), 0)
    wait_for(lambda: (read_json(other) or {}).get("phase") == "joining")
    (tmp_path / "later").touch()
    _, said = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 75
    assert "rank 1 did not join within limits.join (240 s)" in said
    assert f"rank 1 on {os.uname().nodename}" in said
    stopped = int((tmp_path / "stopped").read_text())
    wait_for(lambda: process.start_time(stopped) is None)


def test_a_slow_rank_is_shown_and_let_be(tmp_path: Path) -> None:
    """It does one row in the time in which the other does ten."""
    run, gate = Run(tmp_path / "run"), Gate(tmp_path / "gate", 60, few={1: 10})
    spec = write_job(tmp_path, 120, parallel=REPLICAS)
    running = start(["run", spec, "--run-dir", run.path], gate.env)
    gate.wait(2)
    shown = wait_for(lambda: state.look(run).stragglers.get("w0000-a0001-r0001"))
    assert "of the others' rows/s" in shown
    gate.open()
    _, said = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 0, said


def test_the_summary_names_who_did_far_less_than_the_others() -> None:
    ranks = [
        {"attempt": "w0000-a0001", "rank": rank, "host": "n1", "rows_done": rows}
        for rank, rows in enumerate([100, 96, 20, 0, 104])
    ]
    (slow,) = behind(ranks)
    assert slow == {"attempt": "w0000-a0001", "rank": 2, "host": "n1", "share": 0.2}
    assert behind(ranks[:2]) == []
    assert behind([{**rank, "rows_done": rank["rows_done"] // 10} for rank in ranks]) == []


def test_a_port_that_was_taken_meanwhile_is_stepped_around(tmp_path: Path) -> None:
    """Somebody listens on it between our look and that of `accelerate launch`, which then takes another."""
    spec = write_job(tmp_path, 10, parallel=REPLICAS)
    run = tmp_path / "run"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        program = (
            "import sys\nfrom launcher import prepare\nfrom launcher.runtime import agent, network\n"
            "from pathlib import Path\nspec, run = map(Path, sys.argv[1:])\n"
            "prepare.create_run(prepare.plan_job(spec, [], here=True, say=print), run)\n"
            f"network.free_port = lambda address: {port}\nsys.exit(agent.main(str(run)))"
        )
        argv = [sys.executable, "-c", program, str(spec), str(run)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    assert "already in use" in (run / "logs" / "w0000-a0001-launch-0000.log").read_text()
    assert check(run) == []


def test_a_port_that_was_taken_meanwhile_fails_an_attempt_on_several_nodes(made: Run) -> None:
    """The other nodes were told that port; the next attempt takes another. Its error is that of `accelerate launch`."""
    attempt, env = Attempt(0, 1), environ.for_launch("w0000-a0001", "lo", {})
    made.attempt_dir(attempt).mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        argv = launch_argv(World(2, 2, 0, "127.0.0.1", port), agent.RANK_MODULE, str(made.path))
        with made.log(attempt, "launch-0000").open("w") as log:
            done = subprocess.run(argv, env=env, stderr=log, timeout=PATIENCE_S, check=False)
    assert done.returncode == 1
    error = failure.of_ranks(made, attempt, 0, 1, {0: "starting"}, OomKills.count())
    assert f"port `{port}`, but another process is utilizing it" in error.what


def test_all_attempts_together_are_bounded(tmp_path: Path) -> None:
    spec, run = write_job(tmp_path, 40, limits={"total": "6s"}), tmp_path / "run"
    running = start(["run", spec, "--run-dir", run], Gate(tmp_path / "gate", 10).env)
    _, said = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 75
    assert "limits.total (6 s)" in said
    (ended,) = (tmp_path / "run").glob("attempts/*/ended.json")
    assert json.loads(ended.read_text())["kind"] == "drained"
    again = launcher("resume", tmp_path / "run", code=75)
    assert "limits.total (6 s)" in again.stderr
    assert len(list((tmp_path / "run").glob("attempts/w*"))) == 1


def job_of(restarts_so_far: int) -> Node:
    return Node(0, 2, 0, f"77.{restarts_so_far}", "77", restarts_so_far)


@pytest.fixture
def made(tmp_path: Path) -> Run:
    from launcher import prepare

    spec = write_job(tmp_path, 10)
    planned = prepare.plan_job(spec, ["slurm.max_restarts=3"], here=True, say=lambda _: None)
    return prepare.create_run(planned, tmp_path / "run")


def attempt_of(run: Run, node: Node, outcome: Outcome | None, rows: str = "") -> Any:
    attempt = ledger.open_attempt(run, 0, {"job_id": node.job_id, "beat": 100.0})
    run.journal(attempt, 0).write_text(rows)
    write_json(run.node(attempt, 0), {"beat": 107.0})
    if outcome is not None:
        ledger.end_attempt(run, attempt, asdict(outcome))
    return attempt


def lost(what: str) -> Outcome:
    return Outcome("failed", NodeLost(what, where="n1").as_dict())


def test_the_same_failure_twice_at_the_same_place_is_not_tried_again(made: Run) -> None:
    spec = load_resolved(made.job)
    first = attempt_of(made, job_of(0), lost("node 1 is out of reach"))
    assert restarts.why_not(made, spec, job_of(0), first, lost("node 1 is out of reach")) is None
    second = attempt_of(made, job_of(1), None)
    why = restarts.why_not(made, spec, job_of(1), second, lost("node 1 is out of reach"))
    assert why == "the attempt before ended in the same way, and no row was finished since"
    assert restarts.why_not(made, spec, job_of(1), second, lost("node 2 is out of reach")) is None
    made.journal(second, 0).write_text("a row")
    assert restarts.why_not(made, spec, job_of(1), second, lost("node 1 is out of reach")) is None
    assert "max_restarts is 3" in str(
        restarts.why_not(made, spec, job_of(3), second, Outcome("drained"))
    )


def test_nodes_that_die_without_a_word_twice_are_not_tried_again(made: Run) -> None:
    spec = load_resolved(made.job)
    attempt_of(made, job_of(0), None)
    assert restarts.time_left(made, spec, job_of(1)) is None
    second = attempt_of(made, job_of(1), None)
    with pytest.raises(RunFailed, match="died one after the other"):
        restarts.time_left(made, spec, job_of(2))
    assert restarts.time_left(made, spec, Node.alone()) is None, "a person may always try again"
    made.journal(second, 0).write_text("a row")
    assert restarts.time_left(made, spec, job_of(2)) is None


def test_time_is_counted_by_each_agents_own_clock(made: Run) -> None:
    spec = load_resolved(made.job)
    limits = spec.limits.model_copy(update={"total": 20.0})
    spec = spec.model_copy(update={"limits": limits})
    attempt_of(made, job_of(0), lost("node 1"))
    attempt_of(made, job_of(1), lost("node 2"))
    assert restarts.time_left(made, spec, job_of(2)) == pytest.approx(6.0)
    attempt_of(made, job_of(2), lost("node 3"))
    with pytest.raises(RunFailed, match=r"limits.total \(20 s\)"):
        restarts.time_left(made, spec, job_of(3))


@pytest.fixture
def told(made: Run, tmp_path: Path) -> tuple[JobSpec, Path]:
    """A spec that has its owner told, and the file that then holds the message."""
    spec, path = load_resolved(made.job), tmp_path / "told"
    told = {"command": f'echo "$LAUNCHER_STATE: $LAUNCHER_MESSAGE" > {path}'}
    return spec.model_copy(update={"notify": spec.notify.model_copy(update=told)}), path


def test_why_no_attempt_is_opened_is_told(made: Run, told: tuple[JobSpec, Path]) -> None:
    for restart in range(2):
        attempt_of(made, job_of(restart), None)
    with pytest.raises(RunFailed):
        agent._time_left(made, told[0], job_of(2))
    assert told[1].read_text().startswith("failed: two attempts died")


def test_a_requeue_that_is_refused_is_told(
    made: Run, told: tuple[JobSpec, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuses = tmp_path / "scontrol"
    refuses.write_text("#!/bin/sh\necho no such job >&2\nexit 1\n")
    refuses.chmod(0o700)
    for path, why in ((tmp_path, "no such job"), (tmp_path / "nowhere", "No such file")):
        monkeypatch.setenv("PATH", str(path))
        with pytest.raises(SlurmRefused, match=why):
            agent._requeue(made, told[0], job_of(0), Attempt(0, 1))
        assert told[1].read_text().startswith(f"failed: scontrol show: {why}")


@pytest.mark.parametrize(
    ("asked", "goes_on"), [(None, True), (signal.SIGUSR2, True), (signal.SIGTERM, False)]
)
def test_a_lost_node_brings_no_job_back_that_was_taken_away(
    asked: signal.Signals | None, goes_on: bool
) -> None:
    stop = agent.StopRequest(asked)
    assert agent._goes_on(job_of(0), lost("node 1"), stop) is goes_on
    assert not agent._goes_on(Node.alone(), lost("node 1"), stop)
