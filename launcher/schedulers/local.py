"""Here: the agent as a child of this process. It and its ranks are gone when this process is gone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from dataclasses import asdict, dataclass, field
from typing import IO, NoReturn

from launcher import ledger
from launcher.errors import LauncherError, RunFailed
from launcher.records import Attempt
from launcher.run import Run, read_json, write_json
from launcher.runtime import process
from launcher.runtime.freshness import AWAKE_S, Freshness
from launcher.runtime.outcome import Outcome, noting

POLL_S = 0.2


@dataclass
class LocalJob:
    """A run that is under way as a child of this process. ``patience_s`` (limits.stall): how long its agent may be silent."""

    run: Run
    agent: subprocess.Popen[bytes]
    said: IO[str]  # the agent's last word, when it has ended
    patience_s: float
    fresh: Freshness = field(default_factory=Freshness)
    looked: float = field(default_factory=time.monotonic)

    def running(self) -> bool:
        return self.agent.poll() is None

    def check(self) -> None:
        """To be called again and again. Raises RunFailed where the agent has stood still for too long: it and its attempt
        are ended then."""
        before, self.looked = self.looked, time.monotonic()
        self.fresh.forgive(max(0.0, self.looked - before - AWAKE_S))  # this process was suspended
        for attempt in self.run.list_attempts(0)[-1:]:
            if self._silent_s(attempt) > self.patience_s:
                self._give_up(attempt)

    def stop(self) -> None:
        """Ask for a drain: rows in flight are given up, finished rows stay."""
        with contextlib.suppress(ProcessLookupError):
            self.agent.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the agent at once, and its ranks with it. Raises RunFailed where it does not end."""
        self.agent.kill()
        try:
            self.agent.wait(process.END_S)
        except subprocess.TimeoutExpired:
            raise process.stuck([self.agent.pid]) from None

    def result(self) -> str:
        """Wait for the agent; ``done`` or ``drained``. Raises the error that ended it."""
        while self.running():
            time.sleep(POLL_S)
            self.check()
        self.said.seek(0)
        try:
            result = json.load(self.said)
        except ValueError:
            raise RunFailed(
                f"the agent ended with exit code {self.agent.returncode} and said nothing",
                where=socket.gethostname(),
                cause="it was killed from outside",
                fix=f"launcher resume {self.run.path}",
            ) from None
        if "error" in result:
            raise LauncherError.from_dict(result)
        return str(result["outcome"])

    def _silent_s(self, attempt: Attempt) -> float:
        """For how long the agent has neither beaten nor computed while its ranks are at work; else 0."""
        state = read_json(self.run.node(attempt, 0))
        if state is None or state["outcome"] or ledger.is_over(self.run, attempt):
            return 0.0
        # A beat can't be written to a full disk.
        return self.fresh.age(attempt, (state["beat"], process.cpu_ticks(self.agent.pid)))

    def _give_up(self, attempt: Attempt) -> NoReturn:
        self.kill()
        error = RunFailed(
            f"the agent has been silent for limits.stall ({self.patience_s:.0f} s)",
            where=f"process {self.agent.pid} on {socket.gethostname()}",
            cause="it was stopped, or waits for a filesystem that does not answer",
            fix=f"launcher resume {self.run.path}",
        )
        outcome = Outcome("failed", error.as_dict())
        with noting(self.run, outcome):
            ledger.end_attempt(self.run, attempt, asdict(outcome))
        raise error


def start(run: Run) -> LocalJob:
    """Start the agent of a run on this machine and note it in the run."""
    from launcher.job.load import load_resolved  # `status` can do without

    parent = os.getpid()
    said = os.fdopen(os.memfd_create("agent"), "w+")  # no disk is full for it, and no pipe
    with (run.path / "logs" / "agent-local.log").open("a") as errors:
        agent = subprocess.Popen(
            process.python("launcher.runtime.agent", str(run.path)),
            cwd=run.path,  # `python -m` imports from its working directory first: not from the user's files
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=errors,
            start_new_session=True,  # the terminal's ^C is ours to pass on
            preexec_fn=lambda: process.die_with_parent(parent),  # noqa: PLW1509 - no threads yet
        )
    job = f"{agent.pid}.{process.start_time(agent.pid)}@{socket.gethostname()}"
    noted = {"scheduler": "local", "jobs": [job], "start": run.starts(), "started": time.time()}
    write_json(run.jobs, noted)
    return LocalJob(run, agent, said, load_resolved(run.job).limits.stall)


def states(jobs: list[str]) -> dict[str, str]:
    """``running``, ``gone``, or ``unknown`` for an agent of another host."""
    return {job: _state(job) for job in jobs}


def stop(jobs: list[str]) -> None:
    """End agents of this host that did not follow a drain request; their ranks end with them."""
    for job in jobs:
        if _state(job) == "running":
            os.kill(int(job.split(".")[0]), signal.SIGKILL)


def _state(job: str) -> str:
    pid, _, rest = job.partition(".")
    started, _, host = rest.partition("@")
    if host != socket.gethostname():
        return "unknown"
    return "running" if str(process.start_time(int(pid))) == started else "gone"
