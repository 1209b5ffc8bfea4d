"""What is done to a run that exists: start it, resume it, cancel it."""

from __future__ import annotations

import json
import os
import time

from launcher import ledger, state
from launcher.errors import Busy
from launcher.job.load import load_resolved
from launcher.plan.plan import Plan
from launcher.run import Run, create_exclusive, read_json, request_drain
from launcher.schedulers import local, slurm

CANCEL_POLL_S = 0.2


def start_on_slurm(run: Run) -> list[str]:
    """Queue the run's worlds; the job ids. Raises SlurmRefused."""
    _take_start(run)
    plan = Plan.model_validate(read_json(run.plan))
    return slurm.submit(run, load_resolved(run.job), plan)


def start_here(run: Run) -> local.LocalJob:
    """Start the run's agent as a child of this process. Raises Busy if somebody else is starting the run."""
    _take_start(run)
    return local.start(run)


def _take_start(run: Run) -> None:
    """Let one process alone go on; what ranks that died had claimed is then free. Raises Busy for the others."""
    number = len(list(run.attempts.glob("start-*.json"))) + 1
    who = json.dumps({"host": os.uname().nodename, "pid": os.getpid(), "time": time.time()})
    if not create_exclusive(run.start(number), who + "\n"):
        raise Busy(
            "somebody else is starting the run",
            where=str(run.path),
            fix=f"launcher status {run.path}",
        )
    _end_attempts(run)


def ready_to_resume(run: Run) -> str | None:
    """The scheduler to resume with; None if the run is complete. Raises Busy if somebody is at it."""
    if run.manifest.exists():
        return None
    found = state.look(run)
    if state.alive(found):
        raise Busy(
            f"the run is {found.state}",
            where=str(run.path),
            cause=f"jobs {', '.join(found.jobs)}",
            fix=f"launcher status {run.name}, or launcher cancel {run.name} first",
        )
    return found.scheduler or "local"


def cancel(run: Run) -> list[str]:
    """Drain the run's live attempts, then take its jobs away; the jobs that were stopped."""
    found = state.look(run)
    jobs = [job for job, word in found.jobs.items() if word in ("running", "pending", "unknown")]
    if not jobs:
        return []
    scheduler = state.scheduler_of(run)
    waiting = [job for job, word in found.jobs.items() if word == "pending"]
    if waiting:
        scheduler.stop(waiting)
    deadline = time.monotonic() + load_resolved(run.job).limits.drain + 10
    while time.monotonic() < deadline:
        for attempt in run.list_attempts():  # every time: one may open only now
            if not run.attempt_file(attempt, "ended").exists():
                request_drain(run, attempt, "launcher cancel")
        found = state.look(run)
        if not state.alive(found):
            return jobs
        time.sleep(CANCEL_POLL_S)
    left = [job for job, word in found.jobs.items() if word != "gone"]
    scheduler.stop(left)
    if found.state == "unknown" and found.scheduler == "local":
        # An agent of a host that is gone or was renamed; its ranks gave no sign of life all this time.
        _end_attempts(run)
    return jobs


def _end_attempts(run: Run) -> None:
    """Nobody is at the run: what ranks that died had claimed is free."""
    for attempt in run.list_attempts():
        ledger.end_attempt(run, attempt, {"kind": "failed", "error": None})
