"""The logs of a run, told apart by who speaks; files are read in the order of their last change."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from launcher.errors import UsageError
from launcher.plan.plan import Plan
from launcher.run import Run

POLL_S = 0.3
OVER_S = 3.0  # asking costs a squeue


def read(run: Run, rank: int | None = None) -> Iterator[tuple[str, str]]:
    """(who, line) of all logs, or of one rank's; ``who`` is the file's name without its ending. Raises UsageError for
    a rank that the run has not."""
    _check(run, rank)
    offsets: dict[Path, int] = {}
    return _new_lines(run, rank, offsets)


def follow(run: Run, rank: int | None, over: Callable[[], bool]) -> Iterator[tuple[str, str]]:
    """As ``read``, then what is added, until ``over`` says that nobody works on the run any more."""
    _check(run, rank)
    offsets: dict[Path, int] = {}
    next_look, last = 0.0, False
    while True:
        if time.monotonic() >= next_look:
            last = over()  # before the last look at the files, so that their last lines are seen
            next_look = time.monotonic() + OVER_S
        yield from _new_lines(run, rank, offsets)
        if last:
            return
        time.sleep(POLL_S)


def _check(run: Run, rank: int | None) -> None:
    if rank is None:
        return
    last = Plan.read(run.plan).world_size - 1
    if not 0 <= rank <= last:
        said = f"ranks 0 to {last}" if last else "rank 0 alone"
        raise UsageError(f"run {run.name} has {said}", where=f"rank {rank}")


def _new_lines(run: Run, rank: int | None, offsets: dict[Path, int]) -> Iterator[tuple[str, str]]:
    for path in run.list_logs(rank):
        with path.open("rb") as file:
            file.seek(offsets.get(path, 0))
            data = file.read()
        whole = data.rfind(b"\n") + 1
        offsets[path] = offsets.get(path, 0) + whole
        for line in data[:whole].decode(errors="replace").splitlines():
            yield path.stem, line
