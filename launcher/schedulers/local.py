"""Here: the agent as a child of this process. It and its ranks are gone when this process is gone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass

from launcher.errors import LauncherError, RunFailed
from launcher.run import Run, write_json
from launcher.runtime import process


@dataclass
class LocalJob:
    """A run that is under way as a child of this process."""

    run: Run
    agent: subprocess.Popen[str]

    def running(self) -> bool:
        return self.agent.poll() is None

    def stop(self) -> None:
        """Ask for a drain: rows in flight are given up, finished rows stay."""
        with contextlib.suppress(ProcessLookupError):
            self.agent.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.agent.kill()
        self.agent.wait()

    def result(self) -> str:
        """Wait for the agent; ``done`` or ``drained``. Raises the error that ended it."""
        assert self.agent.stdout is not None
        said = self.agent.stdout.read()
        code = self.agent.wait()
        try:
            result = json.loads(said)
        except ValueError:
            raise RunFailed(
                f"the agent ended with exit code {code} and said nothing",
                where=socket.gethostname(),
                cause="it was killed from outside",
                fix=f"launcher resume {self.run.path}",
            ) from None
        if "error" in result:
            raise LauncherError.from_dict(result)
        return str(result["outcome"])


def start(run: Run) -> LocalJob:
    """Start the agent of a run on this machine and note it in the run."""
    parent = os.getpid()
    with (run.path / "logs" / "agent-local.log").open("a") as errors:
        agent = subprocess.Popen(
            process.python("launcher.runtime.agent", str(run.path)),
            cwd=run.path,  # `python -m` imports from its working directory first: not from the user's files
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,  # the terminal's ^C is ours to pass on
            preexec_fn=lambda: process.die_with_parent(parent),  # noqa: PLW1509 - no threads yet
        )
    job = f"{agent.pid}.{process.start_time(agent.pid)}@{socket.gethostname()}"
    noted = {"scheduler": "local", "jobs": [job], "start": run.starts(), "started": time.time()}
    write_json(run.jobs, noted)
    return LocalJob(run, agent)


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
