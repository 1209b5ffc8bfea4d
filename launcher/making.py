"""Where a run can be made: nobody's place, or an empty directory. What is in a run's directory is run.py's to know."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from launcher.disk import PRIVATE
from launcher.errors import Busy, LauncherError, UsageError
from launcher.job.redact import has_secret

ELSEWHERE = "set output.dir, or give --run-dir"


class Place(NamedTuple):
    """A run's directory, what is first made in it, and what makes it whole."""

    path: Path
    first: Path
    last: Path


def take(place: Place) -> None:
    """Make the directory (0700), or take over an empty one. Raises as ``check_free``, and Busy where others are quicker."""
    check_free(place)
    with _told(place.path):
        place.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = stat.S_IMODE(place.path.stat().st_mode)
        if mode & PRIVATE:
            place.path.chmod(mode & ~PRIVATE)
        try:
            place.first.mkdir(mode=0o700)  # of several at once, one makes it
        except FileExistsError:
            raise _taken(place) from None


def check_free(place: Place) -> None:
    """Raises Busy where a run is or is being made, UsageError where none can be."""
    check_path(place.path)
    there = next(path for path in (place.path, *place.path.parents) if os.path.lexists(path))
    with _told(place.path):
        if not there.is_dir():
            raise UsageError("is a file, not a directory", where=str(there), fix=ELSEWHERE)
        if there == place.path and any(there.iterdir()):
            raise _taken(place)


def check_path(path: Path) -> None:
    """Raises UsageError for a path that sbatch would read as more than a path: it fills in %j and the like, a
    backslash keeps it from doing so, and a line break would end the option that it stands in. And for one that holds a
    secret."""
    if any(ord(letter) < 32 or letter in "%\\\x7f" for letter in str(path)):
        raise UsageError(
            f"a run directory's path can't hold control characters, % or backslashes: {str(path)!r}",
            fix="choose another output.dir, --run-dir or working directory",
        )
    if has_secret(str(path)):
        raise UsageError(
            "a run directory's path can't hold what looks like a secret: scripts, logs and queues show it",
            fix="choose another output.dir, --run-dir or working directory",
        )


def give_back(path: Path, *, empty: bool) -> None:
    """Remove a directory that was taken; where it was there before, leave it ``empty``."""
    for each in path.iterdir():
        shutil.rmtree(each) if each.is_dir() else each.unlink()
    if not empty:
        path.rmdir()


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = f"can't make the run directory: {error.strerror}"
        raise UsageError(what, where=str(path), fix=ELSEWHERE) from None


def _taken(place: Place) -> LauncherError:
    where = str(place.path)
    if place.last.is_file():
        fix = f"launcher resume {place.path}, or name another --run-dir"
        return Busy("the run directory exists already", where=where, fix=fix)
    if place.first.is_dir():
        return Busy(
            "the run directory exists already",
            where=where,
            cause="somebody is making it, or was killed while making it",
            fix="remove it if nobody is at it, or name another --run-dir",
        )
    return UsageError("the directory is not empty, and is no run", where=where, fix=ELSEWHERE)
