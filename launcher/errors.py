"""Errors that a user can cause or must act on: what, where, likely cause, what to do next."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path
from typing import Self

# What the status of a command says; docs/reference/errors.md lists them beside the errors.
EXIT_CODES = {
    0: "all went well",
    1: "rows failed (errors.jsonl says why), `verify` found something, or the system refused something",
    2: "the spec or the command line is wrong; nothing was started",
    3: "the plan does not fit, something that a run needs is missing (such as room on its disk), or `doctor` found a problem; nothing was started",
    4: "Slurm refused",
    75: "the run is not complete: `launcher resume` goes on; or somebody else is at it: try again later",
    130: "interrupted (^C): what was running here was stopped in order; `launcher resume` goes on",
}

# What a disk refuses, whichever file it is for: the likely cause, and what to do first.
DISK_REFUSALS = {
    errno.ENOSPC: ("the disk is full", "make room there"),
    errno.EDQUOT: ("a quota is used up", "make room there"),
    errno.EROFS: ("the filesystem is read-only, maybe since an error of its disk", "look at it"),
    errno.EIO: ("the disk failed, or what leads to it", "look at it"),
}


class LauncherError(Exception):
    """Base of every error that is told without a traceback; what has no class of its own.

    ``what`` is one sentence; ``where`` names a place (file:line:column, rank and host, a path);
    ``cause`` is the likely cause; ``fix`` is what to do or run next. ``exit_code`` is the status
    of the command that ends with this error.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        cause: str | None = None,
        fix: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.cause = cause
        self.fix = fix

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.cause:
            lines.append(f"  likely cause: {self.cause}")
        if self.fix:
            lines.append(f"  next: {self.fix}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, str | int | None]:
        """The JSON form, for ``--json`` and for files that carry an error between processes."""
        return {
            "error": type(self).__name__,
            "what": self.what,
            "where": self.where,
            "cause": self.cause,
            "fix": self.fix,
            "exit_code": self.exit_code,
        }

    @classmethod
    def from_dict(cls, data: dict[str, str | int | None]) -> LauncherError:
        """The error that ``as_dict`` wrote, of its own class again."""
        family: list[type[LauncherError]] = [LauncherError, *_subclasses(LauncherError)]
        kinds = {kind.__name__: kind for kind in family}
        kind = kinds.get(str(data.get("error")), LauncherError)
        error: LauncherError = kind.__new__(kind)
        LauncherError.__init__(
            error,
            str(data["what"]),
            where=_text(data, "where"),
            cause=_text(data, "cause"),
            fix=_text(data, "fix"),
        )
        return error

    @classmethod
    def of_system(
        cls, error: OSError, where: Path | str | None = None, fix: str | None = None
    ) -> Self:
        """What the system refused. ``where``: the folder that was worked in; it counts where no file is named. ``fix``
        comes after making room and the like."""
        cause, first = DISK_REFUSALS.get(error.errno or 0, ("the system refused it", None))
        if error.errno == errno.ENOENT and lies_in(error, where):
            cause, first = "it was removed or moved meanwhile", "put it back"
        place = where if error.filename is None else error.filename
        return cls(
            error.strerror or str(error),
            where=None if place is None else str(place),
            cause=cause,
            fix=", then ".join(filter(None, (first, fix))) or None,
        )


def lies_in(error: OSError, folder: Path | str | None) -> bool:
    """Whether an error names a file below ``folder``, or that itself."""
    named = None not in (error.filename, folder)
    return named and Path(str(error.filename)).is_relative_to(str(folder))


@dataclass(frozen=True)
class Problem:
    """One mistake in a spec. ``where`` is file:line:column, or the override that caused it."""

    where: str
    what: str
    hint: str | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" ({self.hint})" if self.hint else "")


class SpecError(LauncherError):
    """Every mistake of a spec at once."""

    exit_code = 2

    def __init__(self, problems: list[Problem], *, fix: str | None = None) -> None:
        super().__init__("\n".join(str(problem) for problem in problems), fix=fix)
        self.problems = problems


class UsageError(LauncherError):
    """The command line asks for something that is not there or makes no sense."""

    exit_code = 2


class Interrupted(LauncherError):
    """^C, SIGTERM or SIGHUP ended the command; what was running here was stopped in order."""

    exit_code = 130


class DoesNotFit(LauncherError):
    """The plan does not fit the machines."""

    exit_code = 3


class PreflightError(LauncherError):
    """Something that a run needs is missing or broken: model files, environment, disk."""

    exit_code = 3


class Damaged(LauncherError, ValueError):
    """A file that the program wrote is not what it wrote."""


class WeightsError(PreflightError):
    """A checkpoint that is incomplete, corrupt or not what its index says."""


class SlurmRefused(LauncherError):
    """sbatch, squeue or scancel said no."""

    exit_code = 4


class Busy(LauncherError):
    """The run is already running, or somebody else is at it."""

    exit_code = 75


class Superseded(Busy):
    """A later attempt has taken over: this one's processes end, and touch nothing."""


class RunFailed(LauncherError):
    """A rank, node or agent failed; ``launcher resume`` goes on from what is finished."""

    exit_code = 75


class NodeLost(RunFailed):
    """A node of the run does not answer any more; a Slurm job goes back into the queue."""


class PeerLost(RunFailed):
    """The connection to another rank of this rank's replica broke: mostly that rank is the one to ask why."""


def _subclasses(kind: type[LauncherError]) -> list[type[LauncherError]]:
    found = []
    for child in kind.__subclasses__():
        found += [child, *_subclasses(child)]
    return found


def _text(data: dict[str, str | int | None], key: str) -> str | None:
    value = data.get(key)
    return None if value is None else str(value)
