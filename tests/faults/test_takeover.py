"""An agent of an attempt that a later one has taken over from ends its ranks, and touches nothing: not the run, not Slurm."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jobs import wait_for, write_job

from launcher import ledger, prepare
from launcher.errors import Superseded
from launcher.run import Run, read_json
from launcher.runtime import process, rendezvous, restarts
from launcher.runtime.rendezvous import Node

JOB = {
    **{"SLURM_JOB_ID": "77", "SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0"},
    **{"SLURM_RESTART_COUNT": "0", "SLURM_JOB_NODELIST": "n1"},
}
# The payload of a batch job, with ranks that only wait.
AGENT = """
import sys
from launcher.runtime import agent
agent._launch = lambda *_: [sys.executable, "-c", "import time; time.sleep(600)"]
print(agent.run_agent(sys.argv[1]))
"""


@pytest.fixture
def made(tmp_path: Path) -> Run:
    planned = prepare.plan_job(write_job(tmp_path, 10), [], here=True, say=lambda _: None)
    return prepare.create_run(planned, tmp_path / "run")


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One that says of every job that it was started twice; what it was asked for is in the file of the fixture."""
    asked, folder = tmp_path / "asked", tmp_path / "bin"
    folder.mkdir()
    program = folder / "scontrol"
    program.write_text(
        f'#!/bin/sh\necho "$*" >> {asked}\necho "   Requeue=1 Restarts=1 BatchFlag=1"\n'
    )
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    asked.touch()
    return asked


def start_of(count: int) -> Node:
    return Node(0, 1, 0, f"77.{count}", "77", count)


def opened(run: Run, node: Node) -> Any:
    return ledger.open_attempt(run, 0, {"job_id": node.job_id, "restarts": node.restarts})


def test_an_agent_ends_when_a_later_attempt_opens(made: Run, scontrol: Path) -> None:
    argv = [sys.executable, "-c", AGENT, str(made.path)]
    env = {**os.environ, **JOB}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env) as agent:
        beat = made.path / "attempts" / "w0000-a0001" / "node-0000.json"
        wait_for(beat.exists)
        (child,) = wait_for(lambda: process.children(agent.pid))
        opened(made, start_of(1))
        said, _ = agent.communicate(timeout=300)
    assert (agent.returncode, said) == (0, "superseded\n"), (
        "srun would end the later attempt's step"
    )
    assert process.start_time(child) is None
    assert read_json(beat)["outcome"] is None
    assert sorted(path.name for path in beat.parent.iterdir()) == [
        "attempt.json",
        "node-0000.json",
        "rendezvous.json",
    ]
    assert scontrol.read_text() == ""
    log = made.agent_log(0, 0).read_text()
    assert "attempt w0000-a0002 has taken over from w0000-a0001" in log


def test_no_agent_requeues_a_job_that_has_started_again(made: Run, scontrol: Path) -> None:
    first = opened(made, start_of(0))
    with pytest.raises(Superseded, match="Slurm has put job 77 back into the queue itself"):
        restarts.requeue(made, start_of(0), first)
    assert scontrol.read_text() == "show job 77\n"
    second = opened(made, start_of(1))
    restarts.requeue(made, start_of(1), second)
    assert scontrol.read_text() == "show job 77\n" * 2 + "requeue 77\n"
    with pytest.raises(Superseded, match="w0000-a0002 has taken over"):
        restarts.requeue(made, start_of(0), first)
    assert scontrol.read_text() == "show job 77\n" * 2 + "requeue 77\n"


def test_an_agent_of_an_earlier_start_opens_no_attempt(made: Run) -> None:
    opened(made, start_of(0))
    rendezvous.check_start(made, start_of(0))
    opened(made, start_of(1))
    for node in (start_of(1), start_of(2), Node.alone(), Node(0, 1, 0, "78.0", "78", 0)):
        rendezvous.check_start(made, node)
    with pytest.raises(Superseded, match="attempt w0000-a0002 of a later start"):
        rendezvous.check_start(made, start_of(0))
