"""The logs of a run, told apart by who speaks; files are read in the order of their last change."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from launcher.run import Run

POLL_S = 0.3


def read(run: Run, rank: int | None = None) -> Iterator[tuple[str, str]]:
    """(who, line) of all logs, or of one rank's; ``who`` is the file's name without its ending."""
    offsets: dict[Path, int] = {}
    return _new_lines(run, rank, offsets)


def follow(run: Run, rank: int | None = None) -> Iterator[tuple[str, str]]:
    """As ``read``, then what is added, until the run is complete or every attempt in it has ended."""
    offsets: dict[Path, int] = {}
    while True:
        over = _over(run)  # before the last look, so that it sees the last lines
        yield from _new_lines(run, rank, offsets)
        if over:
            return
        time.sleep(POLL_S)


def _over(run: Run) -> bool:
    attempts = run.list_attempts()
    ended = attempts and all(run.attempt_file(attempt, "ended").exists() for attempt in attempts)
    return run.manifest.exists() or bool(ended)


def _new_lines(run: Run, rank: int | None, offsets: dict[Path, int]) -> Iterator[tuple[str, str]]:
    for path in run.list_logs(rank):
        with path.open("rb") as file:
            file.seek(offsets.get(path, 0))
            data = file.read()
        whole = data.rfind(b"\n") + 1
        offsets[path] = offsets.get(path, 0) + whole
        for line in data[:whole].decode(errors="replace").splitlines():
            yield path.stem, line
