"""Attempts: opened by the agent of a world's first node, fencing off the journals of those before."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from launcher import crash
from launcher.errors import Busy, Superseded
from launcher.records import Attempt
from launcher.run import Run, read_json, sync_file, write_json


def open_attempt(run: Run, world: int, info: dict[str, Any]) -> Attempt:
    """The next attempt of ``world``; its attempt.json holds ``info`` and the fences.

    What ranks of earlier attempts append from here on does not count. Raises Busy if somebody else
    opened the same attempt at the same moment.
    """
    earlier = run.list_attempts(world)
    attempt = Attempt(world, earlier[-1].number + 1 if earlier else 1)
    try:
        run.attempt_dir(attempt).mkdir(mode=0o700)
    except FileExistsError:
        raise Busy(
            f"somebody else has just started attempt {attempt.name}",
            where=str(run.path),
            fix=f"launcher status {run.path}",
        ) from None
    crash.point("made", run.attempts)
    sync_file(run.attempts)  # else a power cut may forget it, and its number would be taken again
    crash.point("synced", run.attempts)
    journals = [path for before in earlier for path in run.list_journals(before)]
    fences = {path.name: _size(path) for path in journals}
    told = {"attempt": attempt.name, "started": time.time(), **info, "fences": fences}
    write_json(run.attempt_file(attempt, "attempt"), told)
    return attempt


def end_attempt(run: Run, attempt: Attempt, outcome: dict[str, Any]) -> None:
    """Say that no rank of ``attempt`` works any more; its claims are void. The first outcome stays."""
    path = run.attempt_file(attempt, "ended")
    if not path.exists():
        write_json(path, {"ended": time.time(), **outcome})


def is_over(run: Run, attempt: Attempt) -> bool:
    """Whether ``attempt`` has ended, or a later one of its world has been opened."""
    return run.attempt_file(attempt, "ended").exists() or successor(run, attempt) is not None


def check_current(run: Run, attempt: Attempt) -> None:
    """Raises Superseded if a later attempt has taken over from ``attempt``."""
    if later := successor(run, attempt):
        raise Superseded(
            f"attempt {later.name} has taken over from {attempt.name}",
            where=str(run.path),
            fix=f"launcher status {run.path}",
        )


def successor(run: Run, attempt: Attempt) -> Attempt | None:
    """The latest attempt that was opened after ``attempt`` in its world. One without an attempt.json never came to
    anything.

    Numbers have no gaps, so a few names are asked for: every rank asks at every chunk, and a listing of the folder has
    the attempts of all worlds.
    """
    found, later = None, Attempt(attempt.world, attempt.number + 1)
    while run.attempt_dir(later).exists():
        found = later if run.attempt_file(later, "attempt").exists() else found
        later = Attempt(later.world, later.number + 1)
    return found


class Fences:
    """How much of each journal counts, as of now."""

    def __init__(self, run: Run) -> None:
        infos = {a: read_json(run.attempt_file(a, "attempt")) for a in run.list_attempts()}
        self._fences: dict[int, dict[int, dict[str, int]]] = {}  # by world and number
        for attempt, info in infos.items():
            if info:  # an attempt without an attempt.json never came to anything
                self._fences.setdefault(attempt.world, {})[attempt.number] = info["fences"]

    def limit(self, journal: Path) -> int | None:
        """Bytes of ``journal`` that count: None (all) as long as its world has no later attempt."""
        attempt = Attempt.parse(journal.name.rpartition("-")[0])
        later = (
            fences.get(journal.name, 0)
            for number, fences in self._fences.get(attempt.world, {}).items()
            if number > attempt.number
        )
        return min(later, default=None)


def _size(path: Path) -> int:
    """By opening it: on NFS that asks the server, where stat may answer from a cache."""
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_size
