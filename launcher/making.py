"""Where a run can be made: nobody's place, or an empty directory. What is in a run's directory is run.py's to know."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from launcher.disk import PRIVATE
from launcher.errors import Busy, LauncherError, PreflightError, UsageError
from launcher.job.redact import has_secret

ELSEWHERE = "set output.dir, or give --run-dir"


@contextlib.contextmanager
def taken(path: Path, first: Path, last: Path) -> Iterator[None]:
    """Make the directory (0700), or take over an empty one; where the block fails, it is given back as it was. ``first`` is
    made in it here, before all else, and ``last`` in the block: that makes it whole.

    Raises as ``check_free``, and Busy where others are quicker, PreflightError for an OSError of the block.
    """
    check_free(path, first, last)
    with _told(path):
        before = stat.S_IMODE(path.stat().st_mode) if path.exists() else None
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            first.mkdir(mode=0o700)  # of several at once, one makes it
        except FileExistsError:
            raise _refusal(path, first, last) from None
    try:
        if before is not None and before & PRIVATE:
            path.chmod(before & ~PRIVATE)
        yield
    except BaseException as error:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            _give_back(path, before)
        if isinstance(error, OSError):
            raise PreflightError.of_system(error, path) from error
        raise


def check_free(path: Path, first: Path, last: Path) -> None:
    """Raises Busy where a run is or is being made, UsageError and PreflightError where none can be."""
    check_path(path)
    there = next(each for each in (path, *path.parents) if os.path.lexists(each))
    with _told(path):
        if not there.is_dir():
            raise UsageError("is a file, not a directory", where=str(there), fix=ELSEWHERE)
        if there == path and any(there.iterdir()):
            raise _refusal(path, first, last)


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


def _give_back(path: Path, before: int | None) -> None:
    """Remove a directory that was taken; where it was there ``before``, leave it empty and with that mode."""
    for each in path.iterdir():
        shutil.rmtree(each) if each.is_dir() else each.unlink()
    if before is None:
        path.rmdir()
    else:
        path.chmod(before)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = f"can't make the run directory: {error.strerror}"
        raise PreflightError(what, where=str(path), fix=ELSEWHERE) from None


def _refusal(path: Path, first: Path, last: Path) -> LauncherError:
    where = str(path)
    if last.is_file():
        fix = f"launcher resume {path}, or name another --run-dir"
        return Busy("the run directory exists already", where=where, fix=fix)
    if first.is_dir():
        return Busy(
            "the run directory exists already",
            where=where,
            cause="somebody is making it, or was killed while making it",
            fix="remove it if nobody is at it, or name another --run-dir",
        )
    return UsageError("the directory is not empty, and is no run", where=where, fix=ELSEWHERE)
