"""Tracker: what tells W&B of a run. It is a process of its own, a companion of node 0's agent: a network that does not
answer, or an error in there, keeps no run waiting.

Runs as `python -m launcher.runtime.tracker RUN WORLD`; its stdin brings a line of JSON per look at the run.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from typing import Any

from launcher import environ, logs
from launcher.job import tasks
from launcher.job.load import load_resolved
from launcher.job.spec import JobSpec
from launcher.logs import get_logger
from launcher.report.snapshot import Snapshot
from launcher.run import Run
from launcher.runtime import process

PATIENCE_S = 20.0  # for what is left to be sent when the run has ended
ANSWER_S = 12.0  # for W&B to answer, else the run is kept offline: less than the patience with the shortest of runs


class Tracker:
    """The agent's end of it. What goes wrong is in the log, once."""

    def __init__(self, run: Run, world: int) -> None:
        self._log = run.tracker_log(world)
        argv = process.python("launcher.runtime.tracker", str(run.path), str(world))
        env = environ.with_own({"PYTHONSAFEPATH": "1"})
        self._child = process.start(argv, self._log, env, run.path, companion=True)
        assert self._child.stdin is not None
        self._pipe = self._child.stdin.fileno()
        os.set_blocking(self._pipe, False)
        self._lost = False

    def tell(self, seen: Snapshot) -> None:
        """Pass on how the run is doing; at its end, what came of it. Never waits."""
        message = {"figures": seen.figures(), "totals": seen.totals()}
        try:
            # Shorter than PIPE_BUF: all of it is written, or nothing.
            os.write(self._pipe, json.dumps(message).encode() + b"\n")
        except BlockingIOError:
            pass  # it is far behind; the next line says as much
        except OSError:
            self._complain("it ended")

    def close(self) -> None:
        """Let it send what is left, for a while."""
        code = process.dismiss(self._child, PATIENCE_S)
        if code != 0:
            self._complain("it did not finish" if code is None else f"it ended with status {code}")

    def abandon(self) -> None:
        """End it at once: a later attempt's goes on with the same run of W&B."""
        self._child.kill()
        process.dismiss(self._child, PATIENCE_S)

    def _complain(self, what: str) -> None:
        if not self._lost:
            get_logger().warning("W&B is not told all of this run: %s; see %s", what, self._log)
        self._lost = True


def start(run: Run, spec: JobSpec, world: int) -> Tracker | None:
    """The tracker of a run that asks for one; None, and a line in the log, where it can't be started."""
    if spec.wandb.project is None:
        return None
    try:
        return Tracker(run, world)
    except OSError as error:
        get_logger().warning("W&B is not told of this run: %s", error)
        return None


def track(run: Run, world: int) -> None:
    """Log every line of stdin until there is no more."""
    logged = _begin(run, load_resolved(run.job), world)
    for line in sys.stdin:
        message = json.loads(line)
        logged.log(message["figures"])
        logged.summary.update(message["totals"])
    logged.finish()


def _told(spec: JobSpec) -> dict[str, Any]:
    """The spec without what may hold an address or a key that others must not use."""
    found = spec.model_dump(mode="json", exclude=set(tasks.foreign(spec.task)))
    for section, key in (("notify", "command"), ("slurm", "setup")):
        (found.get(section) or {}).pop(key, None)
    return found


def _begin(run: Run, spec: JobSpec, world: int) -> Any:
    """W&B's run of this world, online or, where that fails, offline."""
    import wandb

    array = spec.slurm.array > 1
    given: dict[str, Any] = {
        "project": spec.wandb.project,
        "entity": spec.wandb.entity,
        "name": f"{run.name}-w{world:04d}" if array else run.name,
        "group": run.name if array else None,
        "id": _id(run, world),
        "resume": "allow",
        "dir": str(run.path),
        "config": _told(spec),
        "settings": wandb.Settings(
            console="off", quiet=True, disable_git=True, disable_code=True, init_timeout=ANSWER_S
        ),
    }
    try:
        return wandb.init(mode=spec.wandb.mode, **given)
    except wandb.Error as error:
        if spec.wandb.mode == "offline":
            raise
        kept = f"{run.path}/wandb/offline-run-*"
        get_logger().warning("kept offline, `wandb sync %s` sends it later: %s", kept, error)
        wandb.teardown()  # its own process still has the run
        return wandb.init(mode="offline", **given)


def _id(run: Run, world: int) -> str:
    """The same over all attempts of a run, and another for a run that takes the place of one that was removed."""
    made = run.spec.stat().st_mtime_ns
    return hashlib.sha256(f"{run.path} {made} {world}".encode()).hexdigest()[:16]


if __name__ == "__main__":
    signal.signal(
        signal.SIGTERM, signal.SIG_IGN
    )  # Slurm's is the agent's to follow, which then ends this
    logs.to("wandb")
    track(Run.open(sys.argv[1]), int(sys.argv[2]))
