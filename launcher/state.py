"""How a run is doing, from its directory and the scheduler: right without sacct, after logout, on another login node."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

from launcher import disk, ledger
from launcher.errors import LauncherError
from launcher.records import Attempt
from launcher.report.sofar import FRESH_S, stragglers
from launcher.run import Run, read_json
from launcher.runtime import process
from launcher.runtime.outcome import errors_of
from launcher.schedulers import local, slurm

Known = Mapping[str, str]  # what schedulers said of jobs: queued, running ...
NOTHING: Known = MappingProxyType({})
SCHEDULERS = {"local": local, "slurm": slurm}
UNREADABLE = (LauncherError, OSError, ValueError, LookupError, TypeError)  # of a broken run
SUBMITTING_S = 120.0  # that long somebody may be inside sbatch


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
    stragglers: dict[str, str] = field(default_factory=dict)  # attempt-rank: what is wrong with it

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Standing:
    """Who is at a run, without its rows: ``state`` and the fields that RunState has of the same names."""

    state: str
    scheduler: str | None
    jobs: dict[str, str]
    attempts: list[dict[str, Any]]
    ranks: list[dict[str, Any]]
    failure: dict[str, Any] | None


def stand(run: Run, known: Known = NOTHING) -> Standing:
    """Who is at ``run`` now. The scheduler is asked for its jobs where they are not all in ``known``."""
    given = read_json(run.jobs) or {}
    attempts = [_attempt(run, attempt) for attempt in run.list_attempts()]
    latest = {entry["world"]: entry for entry in attempts}
    live = [entry for entry in latest.values() if entry["outcome"] is None]
    ranks = _ranks(run, [entry["name"] for entry in live])
    complete = run.manifest.exists()
    jobs = {} if complete else _job_states(given, known)
    for entry in attempts:
        newer = latest[entry["world"]] is not entry
        entry["state"] = entry["outcome"] or (
            "superseded" if newer else _whether(entry, given, jobs)
        )
    ended = [entry["error"] for entry in latest.values() if entry["error"]]
    # An agent that stands still ends no attempt; those of other nodes have said so.
    ended += [error for entry in live for error in errors_of(run, Attempt.parse(entry["name"]))]
    if complete:
        word = "complete"
    elif starter(run, given):
        word = "queued"
    else:
        ended += _unopened(run, given, jobs, attempts)
        word = _word(given, jobs, live, ended, ranks)
    failure = ended[-1] if ended and not complete else None
    states = {entry["name"]: entry["state"] for entry in live}
    ranks = [_as_known(rank, states[rank["attempt"]]) for rank in ranks]
    return Standing(word, given.get("scheduler"), jobs, attempts, ranks, failure)


def look(run: Run, finished: ledger.Finished | None = None, known: Known = NOTHING) -> RunState:
    """The state of ``run`` now. ``finished``: kept between looks, it reads only what was added to the journals."""
    found = stand(run, known)
    rows = _rows(run, ledger.read_manifest(run), finished)
    speed = _speed(found.ranks) if found.state != "complete" else None
    return RunState(
        run=run.name,
        path=str(run.path),
        rows=rows,
        tokens_per_s=speed,
        eta_s=_eta(rows, found.ranks) if speed else None,
        stragglers={
            f"{attempt}-r{rank:04d}": why
            for (attempt, rank), why in stragglers(found.ranks).items()
        },
        **vars(found),
    )


def look_all(runs: Sequence[Run]) -> list[RunState]:
    """The states of many runs, squeue asked once for all of them; a run that can't be read is ``broken``."""
    jobs: list[str] = []
    for run in runs:
        with contextlib.suppress(*UNREADABLE):
            given = read_json(run.jobs)
            if given and given["scheduler"] == "slurm" and not run.manifest.exists():
                jobs += given["jobs"]
    known = slurm.states(jobs) if jobs else NOTHING
    return [_look_or_broken(run, known) for run in runs]


def _look_or_broken(run: Run, known: Known) -> RunState:
    """As ``look``; a run that can't be read is ``broken``, with the reason as its failure."""
    try:
        return look(run, known=known)
    except UNREADABLE as error:
        told = (
            error
            if isinstance(error, LauncherError)
            else LauncherError(f"can't be read: {error!r}")
        )
        rows = {"total": 0, "done": 0, "failed": 0}
        nothing = Standing("broken", None, {}, [], [], told.as_dict())
        return RunState(
            run.name, str(run.path), rows=rows, tokens_per_s=None, eta_s=None, **vars(nothing)
        )


def starter(run: Run, given: dict[str, Any] | None = None) -> str | None:
    """Who has begun to start the run and has not yet noted its jobs; None if nobody, or nobody any more."""
    given = read_json(run.jobs) or {} if given is None else given
    number = run.starts()
    noted = given.get("start", number if given else 0)
    who = read_json(run.start(number)) if number else None
    if who is None or (noted >= number and not given.get("submitting")):
        return None
    here = who["host"] == socket.gethostname()
    gone = here and process.start_time(who["pid"]) != who["pid_started"]
    # Its sbatch may outlive it.
    since = disk.age(run.start(number), disk.clock(run.attempts))
    if since > SUBMITTING_S or (gone and not given.get("submitting")):
        return None
    return who_took(run, number)


def who_took(run: Run, number: int) -> str:
    """The process that starts, or started, the run for the ``number``-th time."""
    who = read_json(run.start(number))
    return f"process {who['pid']} on {who['host']}"


def alive(state: RunState | Standing) -> bool:
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
    if name not in SCHEDULERS:
        raise LauncherError(f"the run names a scheduler {name!r}, which there is not")
    return SCHEDULERS[name]


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


def _ranks(run: Run, attempts: list[str]) -> list[dict[str, Any]]:
    """What ranks said last, and how long ago that was."""
    paths = run.statuses(*map(Attempt.parse, attempts))
    now = disk.clock(run.attempts) if paths else 0.0
    said = ((read_json(path), disk.age(path, now)) for path in paths)
    return [{**status, "heard_s": heard_s} for status, heard_s in said if status]


def _whether(entry: dict[str, Any], given: dict[str, Any], jobs: dict[str, str]) -> str:
    """Whether an attempt that has not ended and is its world's latest goes on, by its job: running | gone | unknown."""
    if not jobs:
        return "unknown"
    if given["scheduler"] == "local":
        (word,) = set(jobs.values())
    else:
        word = jobs.get(entry["job_id"], "gone")
    return "gone" if word == "pending" else word  # it will start again, and nothing of it runs


def _unopened(
    run: Run, given: dict[str, Any], jobs: dict[str, str], attempts: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The error of the latest start's Slurm jobs that ended without any attempt."""
    if set(jobs.values()) != {"gone"} or given["scheduler"] != "slurm":
        return []
    opened = {entry["job_id"] for entry in attempts}
    error = slurm.ended_early(run, [job for job in jobs if job not in opened])
    return [error.as_dict()] if error else []


def _as_known(rank: dict[str, Any], attempt: str) -> dict[str, Any]:
    """A rank with what is known of it instead of what it said last: ``phase`` is ``gone`` where its job is, and ``unknown``
    where nobody can be asked and it is silent; ``last_phase`` is its own word."""
    said = phase = rank["phase"]
    silent = rank["heard_s"] > FRESH_S
    if said != "finished" and (attempt == "gone" or (attempt == "unknown" and silent)):
        phase = attempt
    return {**rank, "phase": phase, "last_phase": said}


def _job_states(given: dict[str, Any], known: Known) -> dict[str, str]:
    jobs: list[str] = given.get("jobs") or []
    if known.keys() >= set(jobs):
        return {job: known[job] for job in jobs}
    return dict(_scheduler(given["scheduler"]).states(jobs))


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
    states = set(jobs.values())
    if "running" in states:
        return "running"
    if "pending" in states:
        return "queued"
    # The scheduler does not answer, or the agent is another host's: the ranks' own word counts.
    if "unknown" in states and (live or given["scheduler"] == "slurm"):
        return "running" if any(rank["heard_s"] < FRESH_S for rank in ranks) else "unknown"
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
