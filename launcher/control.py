"""What is done to a run that exists: start it, resume it, cancel it."""

from __future__ import annotations

import json
import os
import time

from launcher import ledger, state
from launcher.disk import private
from launcher.errors import Busy, Damaged
from launcher.job.load import load_resolved
from launcher.plan.plan import Plan
from launcher.run import Run, create_exclusive, read_json, request_drain
from launcher.runtime import process
from launcher.schedulers import local, slurm

CANCEL_POLL_S = 0.2


@private()
def start_on_slurm(run: Run) -> list[str]:
    """Queue the run's worlds; the job ids. Raises SlurmRefused."""
    _take_start(run)
    plan = Plan.read(run.plan)
    return slurm.submit(run, load_resolved(run.job), plan)


@private()
def start_here(run: Run) -> local.LocalJob:
    """Start the run's agent as a child of this process. Raises Busy if somebody else is starting the run."""
    _take_start(run)
    return local.start(run)


def _take_start(run: Run) -> None:
    """Let one process alone go on, and only where nobody is at the run; what ranks that died had claimed is then
    free. Raises Busy for the others, and says who it is."""
    number = (
        run.starts() + 1
    )  # before the look: whoever starts the run after it has taken this number
    found = state.stand(run)
    if state.alive(found):
        jobs = [job for job, word in found.jobs.items() if word != "gone"]
        at_it = f"jobs {', '.join(jobs)}" if jobs else state.starter(run)
        raise _busy(run, f"the run is {found.state}", at_it)
    if not run.attempts.exists() and run.list_journals():
        raise Damaged(
            "there are journals, and no attempts/ that says which of their rows count",
            where=str(run.path),
            fix="put attempts/ back",
        )
    run.make_folders()
    me = os.getpid()
    who = {"host": os.uname().nodename, "pid": me, "pid_started": process.start_time(me)}
    if not create_exclusive(run.start(number), json.dumps({**who, "time": time.time()}) + "\n"):
        raise _busy(run, "somebody else is starting the run", state.who_took(run, number))
    _end_attempts(run)


def _busy(run: Run, what: str, who: str | None) -> Busy:
    fix = f"launcher status {run.path}, or launcher cancel {run.path} first"
    return Busy(what, where=str(run.path), cause=who, fix=fix)


def scheduler_to_resume(run: Run) -> str | None:
    """Where the run goes on; None if it is complete."""
    if run.manifest.exists():
        return None
    planned = "slurm" if Plan.read(run.plan).script else "local"
    return str((read_json(run.jobs) or {"scheduler": planned})["scheduler"])


@private()
def cancel(run: Run) -> list[str]:
    """Drain the run's live attempts, then take its jobs away; the jobs that were stopped."""
    _request_drains(run)  # first of all: the scheduler may take its time
    found = state.stand(run)
    jobs = [job for job, word in found.jobs.items() if word in ("running", "pending", "unknown")]
    if not jobs:
        return []
    scheduler = state.scheduler_of(run)
    if waiting := _waiting(found):
        scheduler.stop(waiting)
    deadline = time.monotonic() + load_resolved(run.job).limits.drain + 10
    while time.monotonic() < deadline:
        _request_drains(run)  # every time: an attempt may open only now
        found = state.stand(run)
        if not state.alive(found):
            return jobs
        if found.state == "unknown" and all(entry["outcome"] for entry in found.attempts):
            break  # the scheduler does not answer, and the run directory has no more to say
        time.sleep(CANCEL_POLL_S)
    left = [job for job, word in found.jobs.items() if word != "gone"]
    scheduler.stop(left)
    if found.state == "unknown" and found.scheduler == "local":
        # An agent of a host that is gone or was renamed; its ranks gave no sign of life all this time.
        _end_attempts(run)
    return jobs


def _waiting(found: state.Standing) -> list[str]:
    """Jobs that have nothing to drain: queued ones, and of Slurm's those that have opened no attempt yet."""
    opened = {entry["job_id"] for entry in found.attempts}
    idle = {job for job, word in found.jobs.items() if word == "running"} - opened
    queued = {job for job, word in found.jobs.items() if word == "pending"}
    return sorted(queued | idle if found.scheduler == "slurm" else queued)


def _request_drains(run: Run) -> None:
    for attempt in run.list_attempts():
        if not run.attempt_file(attempt, "ended").exists():
            request_drain(run, attempt, "launcher cancel")


def _end_attempts(run: Run) -> None:
    """Nobody is at the run: what ranks that died had claimed is free."""
    for attempt in run.list_attempts():
        ledger.end_attempt(run, attempt, {"kind": "failed", "error": None})
