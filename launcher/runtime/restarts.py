"""Restarts: whether a world may run again by itself, how, and how long all its attempts may take together.

Wall clocks are not asked: an attempt's length is that of its own agent's monotonic clock.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import asdict

from launcher import ledger
from launcher.errors import RunFailed, SlurmRefused, Superseded
from launcher.job.spec import JobSpec
from launcher.records import Attempt
from launcher.run import Run, read_json
from launcher.runtime.outcome import Outcome
from launcher.runtime.rendezvous import Node

PATIENCE_S = 60.0  # with scontrol: without a network, it tries for a while
RESTARTS = re.compile(r"\bRestarts=(\d+)")
SAME = ("error", "what", "where")  # of two errors: the same way, at the same place


def time_left(run: Run, spec: JobSpec, node: Node) -> float | None:
    """Seconds that a new attempt may take; None without ``limits.total``. Raises RunFailed if there are none, or if the
    last two attempts of this Slurm job ended without a word and without a row: a third would do so, too."""
    attempts = run.list_attempts(node.world)
    if node.restarts and len(attempts) > 1 and all(_died(run, a, node) for a in attempts[-2:]):
        raise RunFailed(
            "two attempts died one after the other without a word, and before they had finished a row",
            where=f"Slurm job {node.job_id}",
            cause="what the job does takes its nodes down, such as all of the host's memory",
            fix=f"launcher logs {run.path}; launcher resume tries again",
        )
    total = spec.limits.total
    if total is None:
        return None
    left = total - sum(_seconds(run, attempt) for attempt in attempts)
    if left <= 0:
        raise used_up(run, spec)
    return left


def used_up(run: Run, spec: JobSpec) -> RunFailed:
    return RunFailed(
        f"all attempts together have taken limits.total ({spec.limits.total:.0f} s)",
        where=str(run.path),
        fix=f"a larger limits.total in {run.job}, then launcher resume {run.path}",
    )


def why_not(run: Run, spec: JobSpec, node: Node, attempt: Attempt, outcome: Outcome) -> str | None:
    """Why the job of an attempt that ended so does not go back into the queue; None if it may."""
    if node.restarts >= spec.slurm.max_restarts:
        return f"{node.restarts} restarts went before, and slurm.max_restarts is {spec.slurm.max_restarts}"
    if outcome.error is None or _has_rows(run, attempt):
        return None
    before = [other for other in run.list_attempts(node.world) if other.number < attempt.number]
    ended = read_json(run.attempt_file(before[-1], "ended")) if before else None
    if ended and _way(ended) == _way(asdict(outcome)):
        return "the attempt before ended in the same way, and no row was finished since"
    return None


def requeue(run: Run, node: Node, attempt: Attempt) -> None:
    """Put this attempt's Slurm job back into the queue.

    All starts of a job have one number. An agent that was cut off may come to this when Slurm has long started the job
    again, so both have to agree that this is the latest start: the run directory, and Slurm just before it is asked.
    Raises Superseded where it is not, SlurmRefused.
    """
    ledger.check_current(run, attempt)
    found = RESTARTS.search(_scontrol(run, "show", "job", str(node.job_id)))
    if found and int(found[1]) > node.restarts:
        raise Superseded(
            f"Slurm has put job {node.job_id} back into the queue itself",
            where=str(run.path),
            fix=f"launcher status {run.path}",
        )
    _scontrol(run, "requeue", str(node.job_id))


def _scontrol(run: Run, *words: str) -> str:
    try:
        done = subprocess.run(
            ["scontrol", *words], capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        said = done.stderr.strip() if done.returncode else None
    except subprocess.TimeoutExpired:
        said = "no answer"
    except OSError as error:
        said = error.strerror
    if said is not None:
        what = f"scontrol {words[0]}: {said}"
        raise SlurmRefused(what, where=f"job {words[-1]}", fix=f"launcher resume {run.path}")
    return done.stdout


def _died(run: Run, attempt: Attempt, node: Node) -> bool:
    """Whether an attempt of this job ended without its agents' having said how, and without a row."""
    info = read_json(run.attempt_file(attempt, "attempt"))
    told = run.attempt_file(attempt, "ended").exists()
    return not told and bool(info and info["job_id"] == node.job_id) and not _has_rows(run, attempt)


def _has_rows(run: Run, attempt: Attempt) -> bool:
    done = any(path.stat().st_size for path in run.list_journals(attempt))
    return done or any(run.list_progress(attempt))  # a script's word


def _way(ended: dict[str, dict[str, str] | None]) -> list[str | None] | None:
    error = ended["error"]
    return [error[key] for key in SAME] if error else None


def _seconds(run: Run, attempt: Attempt) -> float:
    """How long the attempt ran, to the second: from its opening to the last sign of life of node 0's agent."""
    info = read_json(run.attempt_file(attempt, "attempt"))
    last = read_json(run.node(attempt, 0))
    if not info or not last or "beat" not in info:  # an older version opened it
        return 0.0
    return max(0.0, float(last["beat"] - info["beat"]))
