"""Where runs are: a small file per run in the user's home, so that a run is found from any directory or login node."""

from __future__ import annotations

import zlib
from pathlib import Path

from launcher import environ
from launcher.errors import LauncherError, UsageError
from launcher.logs import get_logger
from launcher.run import Run, read_json, write_json


def register(run: Run) -> None:
    """Remember ``run``, where the home can be written: without, the run is found by its path."""
    folder = environ.state_home() / "runs"
    mark = zlib.crc32(str(run.path).encode())
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(folder / f"{run.name}-{mark:08x}.json", {"path": str(run.path)})
    except OSError as error:
        get_logger().warning("%s is not in `launcher list`: %s", run.path, error)


def list_runs() -> list[Run]:
    """Runs that were registered or lie in ./runs and still exist, the oldest first."""
    entries = (environ.state_home() / "runs").glob("*.json")
    paths = {Path(path) for path in map(_path_in, entries) if path}
    paths |= {path.absolute() for path in Path("runs").glob("*")}
    runs = [Run(path) for path in paths if Run(path).job.is_file()]
    return sorted(runs, key=lambda run: run.job.stat().st_mtime_ns)


def find(reference: str | None) -> Run:
    """The run that a user means: a directory, a name, a Slurm job id, or None for the latest.

    Raises UsageError if there is none, or several of that name.
    """
    if reference is not None and Run(reference).job.is_file():
        return Run(reference)
    runs = list_runs()
    if reference is None:
        if not runs:
            raise UsageError("there is no run yet", fix="launcher run configs/demo.yaml")
        return runs[-1]
    found = [run for run in runs if run.name == reference] or [
        run for run in runs if _has_job(run, reference)
    ]
    if not found:
        raise UsageError(f"no run {reference!r}", fix="launcher list shows the runs")
    if len(found) > 1:
        places = ", ".join(str(run.path) for run in found)
        raise UsageError(
            f"several runs are called {reference!r}", fix=f"give the directory: {places}"
        )
    return found[0]


def next_run_dir(parent: Path, name: str) -> Path:
    """``parent/name-0001``, or the number after the highest that is taken."""
    taken = [path.name.rpartition("-")[2] for path in parent.glob(f"{name}-[0-9]*")]
    return parent / f"{name}-{max([0, *(int(n) for n in taken if n.isdecimal())]) + 1:04d}"


def _path_in(entry: Path) -> str | None:
    try:
        return str(read_json(entry)["path"])
    except (ValueError, TypeError, KeyError):
        return None  # not one of ours, or cut short by a full disk


def _has_job(run: Run, job: str) -> bool:
    try:
        jobs = (read_json(run.jobs) or {}).get("jobs", [])
    except (ValueError, LauncherError):
        return False
    return any(known == job or known.split("_")[0] == job for known in jobs)
