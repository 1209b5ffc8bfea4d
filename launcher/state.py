"""How a run is doing, from its directory and the scheduler: right without sacct, after logout, on another login node."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from launcher import ledger
from launcher.errors import LauncherError
from launcher.records import Attempt
from launcher.run import Run, read_json
from launcher.schedulers import local, slurm

SUBMITTING_S = 120.0  # that long somebody may be inside sbatch
FRESH_S = 30.0  # a rank writes its status twice a second; a shared filesystem may show it late


@dataclass(frozen=True)
class RunState:
    """``state``: queued | running | complete | stopped | failed | unknown (the scheduler does not answer) |
    broken (its files can't be read)."""

    run: str
    path: str
    state: str
    rows: dict[str, int]  # total, done (failed ones included), failed
    tokens_per_s: float | None  # of the ranks that run now
    eta_s: float | None
    scheduler: str | None
    jobs: dict[str, str]
    attempts: list[dict[str, Any]]
    ranks: list[dict[str, Any]]
    failure: dict[str, Any] | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def look(run: Run, finished: ledger.Finished | None = None) -> RunState:
    """The state of ``run`` now. ``finished``: kept between looks, it reads only what was added to the journals."""
    given = read_json(run.jobs) or {}
    attempts = [_attempt(run, attempt) for attempt in run.list_attempts()]
    latest = {entry["world"]: entry for entry in attempts}
    live = [entry for entry in latest.values() if entry["outcome"] is None]
    ranks = [status for entry in live for status in _ranks(run, entry["name"])]
    manifest = read_json(run.manifest)
    jobs = {} if manifest else _job_states(given)
    ended = [entry["error"] for entry in latest.values() if entry["error"]]
    rows = _rows(run, manifest, finished)
    speed = _speed(ranks) if live and not manifest else None
    return RunState(
        run=run.name,
        path=str(run.path),
        state="complete" if manifest else _word(given, jobs, live, ended, ranks),
        rows=rows,
        tokens_per_s=speed,
        eta_s=_eta(rows, ranks) if speed else None,
        scheduler=given.get("scheduler"),
        jobs=jobs,
        attempts=attempts,
        ranks=ranks,
        failure=ended[-1] if ended and manifest is None else None,
    )


def look_or_broken(run: Run) -> RunState:
    """As ``look``; a run that can't be read is ``broken``, with the reason as its failure."""
    try:
        return look(run)
    except (LauncherError, OSError, ValueError, LookupError, TypeError) as error:
        told = (
            error
            if isinstance(error, LauncherError)
            else LauncherError(f"can't be read: {error!r}")
        )
        rows = {"total": 0, "done": 0, "failed": 0}
        nothing: dict[str, Any] = {
            "jobs": {},
            "attempts": [],
            "ranks": [],
            "failure": told.as_dict(),
        }
        return RunState(run.name, str(run.path), "broken", rows, None, None, None, **nothing)


def alive(state: RunState) -> bool:
    """Whether somebody works, or will work by itself, on the run."""
    return state.state in ("queued", "running", "unknown")


def scheduler_of(run: Run) -> Any:
    """The scheduler's module, by the name in the run. Raises LauncherError for a run never started."""
    given = read_json(run.jobs)
    if given is None:
        raise LauncherError(
            "the run was never started", where=str(run.path), fix=f"launcher resume {run.path}"
        )
    return _scheduler(given["scheduler"])


def _scheduler(name: str) -> Any:
    modules = {"local": local, "slurm": slurm}
    if name not in modules:
        raise LauncherError(f"the run names a scheduler {name!r}, which there is not")
    return modules[name]


def _attempt(run: Run, attempt: Attempt) -> dict[str, Any]:
    info = read_json(run.attempt_file(attempt, "attempt")) or {}
    ended = read_json(run.attempt_file(attempt, "ended")) or {}
    drain = read_json(run.attempt_file(attempt, "drain"))
    return {
        "name": attempt.name,
        "world": attempt.world,
        "host": info.get("host"),
        "job_id": info.get("job_id"),
        "started": info.get("started"),
        "draining": drain and drain["reason"],
        "outcome": ended.get("kind"),
        "error": ended.get("error"),
    }


def _ranks(run: Run, attempt: str) -> list[dict[str, Any]]:
    statuses = [read_json(path) for path in run.statuses(Attempt.parse(attempt))]
    return [status for status in statuses if status]


def _job_states(given: dict[str, Any]) -> dict[str, str]:
    if not given.get("jobs"):
        return {}
    module = _scheduler(given["scheduler"])
    return dict(module.states(given["jobs"]))


def _rows(
    run: Run, manifest: dict[str, Any] | None, finished: ledger.Finished | None
) -> dict[str, int]:
    if manifest:
        counts = manifest["rows"]
        return {"total": counts["total"], "done": counts["total"], "failed": counts["failed"]}
    seen = (finished or ledger.Finished(run)).update()
    return {"total": len(seen.done), "done": int(seen.done.sum()), "failed": int(seen.failed.sum())}


def _word(
    given: dict[str, Any],
    jobs: dict[str, str],
    live: list[dict[str, Any]],
    ended: list[Any],
    ranks: list[dict[str, Any]],
) -> str:
    if given.get("submitting") and time.time() - given["started"] < SUBMITTING_S:
        return "queued"
    states = set(jobs.values())
    if "running" in states:
        return "running"
    if "pending" in states:
        return "queued"
    # The scheduler does not answer, or the agent is another host's: the ranks' own word counts.
    if "unknown" in states and (live or given["scheduler"] == "slurm"):
        return "running" if any(time.time() - r["updated"] < FRESH_S for r in ranks) else "unknown"
    return "failed" if ended else "stopped"


def _speed(ranks: list[dict[str, Any]]) -> float | None:
    rates = [r["completion_tokens"] / _span(r) for r in _running(ranks) if r["completion_tokens"]]
    return sum(rates) if rates else None


def _running(ranks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [rank for rank in ranks if rank["phase"] == "running" and _span(rank) > 0]


def _span(rank: dict[str, Any]) -> float:
    return float(rank["updated"] - rank["phase_since"])


def _eta(rows: dict[str, int], ranks: list[dict[str, Any]]) -> float | None:
    rate = sum(r["rows_done"] / _span(r) for r in _running(ranks))
    return (rows["total"] - rows["done"]) / rate if rate else None
