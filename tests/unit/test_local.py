"""`launcher run` and its agent: one that stands still is given up, one that works is not."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher import crash, ledger
from launcher.errors import RunFailed
from launcher.run import Run, read_json, write_json
from launcher.runtime import process
from launcher.runtime.outcome import Outcome, conclude
from launcher.schedulers.local import LocalJob


@pytest.fixture
def job(tmp_path: Path) -> Iterator[LocalJob]:
    """A run whose agent has said that its ranks are at work, and was stopped then."""
    run = Run.create(tmp_path / "run")
    attempt = ledger.open_attempt(run, 0, {})
    write_json(run.node(attempt, 0), {"host": "here", "beat": 1.0, "outcome": None})
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as agent:
        os.kill(agent.pid, signal.SIGSTOP)
        os.waitpid(agent.pid, os.WUNTRACED)
        yield LocalJob(run, agent, io.StringIO(), 60.0)
        agent.kill()


def later(job: LocalJob) -> None:
    """What ``job`` sees 100 s after its last look, in which others have looked like that now and then."""
    job.fresh.seen = {key: (value, at - 100) for key, (value, at) in job.fresh.seen.items()}
    job.check()


def test_a_stopped_agent_is_given_up_and_the_run_says_why(job: LocalJob) -> None:
    job.check()
    with pytest.raises(RunFailed, match=r"silent for limits.stall \(60 s\)") as caught:
        later(job)
    assert f"process {job.agent.pid} on" in str(caught.value)
    assert job.agent.returncode == -signal.SIGKILL
    (attempt,) = job.run.list_attempts()
    ended = read_json(job.run.attempt_file(attempt, "ended"))
    assert (ended["kind"], ended["error"]) == ("failed", caught.value.as_dict())


def test_why_it_was_given_up_is_told_where_that_can_not_be_noted(job: LocalJob) -> None:
    job.check()
    crash.arm("ended.written:1:ENOSPC")
    try:
        with pytest.raises(RunFailed, match=r"silent for limits.stall") as caught:
            later(job)
    finally:
        crash.arm(None)
    assert f"make room there, then launcher resume {job.run.path}" in str(caught.value)


def test_one_that_can_not_be_killed_is_not_waited_for_for_ever(
    job: LocalJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "END_S", 0.01)
    with monkeypatch.context() as waiting:  # for a device, as far as one can tell
        waiting.setattr(job.agent, "kill", lambda: None)
        with pytest.raises(RunFailed, match=rf"processes \[{job.agent.pid}\] do not end"):
            job.kill()


def test_one_that_beats_or_computes_is_let_be(job: LocalJob) -> None:
    (attempt,) = job.run.list_attempts()
    for beat in range(3):
        write_json(job.run.node(attempt, 0), {"host": "here", "beat": beat, "outcome": None})
        later(job)
    before, _ = job.fresh.seen[attempt]
    os.kill(job.agent.pid, signal.SIGCONT)  # it computes, with a full disk for its beats
    while job.fresh.seen[attempt][0] == before:
        time.sleep(0.01)
        job.check()


@pytest.mark.parametrize("said", ["outcome", "ended", "nothing"])
def test_one_that_does_not_watch_ranks_may_be_silent(said: str, job: LocalJob) -> None:
    """It verifies weights, or gathers results: nothing else can be at this run meanwhile."""
    job.check()
    (attempt,) = job.run.list_attempts()
    if said == "outcome":
        conclude(job.run, attempt, 0, Outcome("done"))
    elif said == "ended":
        ledger.end_attempt(job.run, attempt, {"kind": "failed", "error": None})
    else:
        job.run.node(attempt, 0).unlink()
    later(job)


def test_time_in_which_the_command_itself_stood_still_does_not_count(job: LocalJob) -> None:
    job.check()
    job.looked -= 100
    later(job)
