"""Outcome: how an attempt ended, on one node or as a whole."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from launcher.errors import LauncherError, RunFailed
from launcher.records import Attempt
from launcher.run import Run, read_json, write_json


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended on a node: ``done``, ``drained`` (asked to stop) or ``failed``."""

    kind: str
    error: dict[str, Any] | None = None


def conclude(run: Run, attempt: Attempt, node: int, outcome: Outcome) -> None:
    """Publish how an attempt ended on a node."""
    state = {"host": socket.gethostname(), "beat": time.monotonic(), "outcome": asdict(outcome)}
    write_json(run.node(attempt, node), state)


@contextlib.contextmanager
def noting(run: Run, outcome: Outcome) -> Iterator[None]:
    """Where an outcome can't be written, its own error is still the one to tell."""
    try:
        yield
    except OSError as error:
        if outcome.error is None:
            raise
        lost = LauncherError.from_dict(outcome.error)
        refusal = RunFailed.of_system(error, run.path, lost.fix)
        lost.cause = lost.cause or f"{refusal.where}: {refusal.what}"
        lost.fix = refusal.fix
        raise lost from error


def errors_of(run: Run, attempt: Attempt) -> list[dict[str, Any]]:
    """What ended the attempt on its nodes, as far as their agents have said."""
    states = [read_json(path) or {} for path in run.nodes(attempt)]
    outcomes = [state["outcome"] for state in states if state.get("outcome")]
    return [outcome["error"] for outcome in outcomes if outcome["error"]]


def raise_outcome(outcome: Outcome) -> None:
    """Raise the error of a failed outcome again, of its own class."""
    if outcome.error is not None:
        raise LauncherError.from_dict(outcome.error)
    if outcome.kind == "failed":
        raise RunFailed("the attempt failed and left no error")
