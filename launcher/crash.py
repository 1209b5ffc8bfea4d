"""Crash points: the moments at which a test kills this process, or makes a write fail. Off, they cost one comparison.

Armed by the environment alone (``LAUNCHER_CRASH=outputs.renamed``), in every process that inherits it; nothing in
a job spec can set it. docs/faults.md says what they are for.
"""

from __future__ import annotations

import errno
import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path

from launcher import environ

_PUBLISHED = ("written", "synced", "renamed", "published")  # disk.publish
_LINKED = ("written", "synced", "linked", "created")  # disk.create_exclusive
_MOMENTS = {
    # Making a run.
    "run": ("made", "synced"),
    "rows": ("written", "synced"),
    **dict.fromkeys(("meta", "spec", "plan", "job"), _PUBLISHED),
    # Starting it.
    "start": _LINKED,
    **dict.fromkeys(("jobs", "attempt", "rendezvous"), _PUBLISHED),
    "attempts": ("made", "synced"),
    # Working on it.
    "claims": ("written", "synced", "linked"),
    "journals": ("opened", "synced", "written", "durable"),
    "node": _PUBLISHED,
    # Ending it.
    "ended": _PUBLISHED,
    "merged": _LINKED,
    **dict.fromkeys(("outputs", "errors", "summary", "manifest"), _PUBLISHED),
}
POINTS = tuple(f"{kind}.{moment}" for kind, moments in _MOMENTS.items() for moment in moments)


@dataclass
class _Crash:
    where: str
    passes: int  # still to come, the fatal one included
    errno: int  # 0: SIGKILL

    def come_by(self, where: str) -> None:
        self.passes -= where == self.where
        if self.passes or where != self.where:
            return
        if self.errno:
            raise OSError(self.errno, os.strerror(self.errno))
        os.kill(os.getpid(), signal.SIGKILL)


_armed: _Crash | None = None


def arm(order: str | None) -> None:
    """Crash as ordered: ``point[:pass[:errno]]``, such as ``claims.linked``, ``journals.durable:3``, ``outputs.written:1:ENOSPC``;
    None: nowhere. Raises ValueError for a point that there is not."""
    global _armed  # noqa: PLW0603 - a process dies once
    where, count, fault = (*(order or "").split(":"), "", "")[:3]
    if where and where not in POINTS:
        raise ValueError(f"LAUNCHER_CRASH: no crash point {where!r}")
    _armed = _Crash(where, int(count or 1), getattr(errno, fault, 0)) if where else None


def point(moment: str, path: Path) -> None:
    """``path`` has come to ``moment``. Raises OSError where that is what the test wants."""
    if _armed is not None:
        _armed.come_by(f"{_kind(path)}.{moment}")


def _kind(path: Path) -> str:
    """The word that the file's name begins with; of a file that is named for its attempt, its folder's name."""
    word = re.match("[a-z]{2,}", path.name)
    return word[0] if word else path.parent.name


arm(environ.crash_point())
