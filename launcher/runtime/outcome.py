"""Outcome: how an attempt ended, on one node or as a whole."""

from __future__ import annotations

import socket
import time
from dataclasses import asdict, dataclass
from typing import Any

from launcher.errors import LauncherError, RunFailed
from launcher.records import Attempt
from launcher.run import Run, write_json


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended on a node: ``done``, ``drained`` (asked to stop) or ``failed``."""

    kind: str
    error: dict[str, Any] | None = None


def conclude(run: Run, attempt: Attempt, node: int, outcome: Outcome) -> None:
    """Publish how an attempt ended on a node."""
    state = {"host": socket.gethostname(), "beat": time.monotonic(), "outcome": asdict(outcome)}
    write_json(run.node(attempt, node), state)


def raise_outcome(outcome: Outcome) -> None:
    """Raise the error of a failed outcome again, of its own class."""
    if outcome.error is not None:
        raise LauncherError.from_dict(outcome.error)
    if outcome.kind == "failed":
        raise RunFailed("the attempt failed and left no error")
