"""What went wrong in an attempt, in words: the error a rank left behind, else its exit code and last lines."""

from __future__ import annotations

import re
import signal
import socket
from pathlib import Path

from launcher.errors import LauncherError, RunFailed
from launcher.records import Attempt
from launcher.run import Run, read_json

TAIL_LINES = 12
TAIL_BYTES = 20_000
# torchrun's closing report names the first rank that it saw fail.
ROOT_CAUSE = re.compile(r"Root Cause.*?rank\s*: (\d+).*?exitcode\s*: (-?\d+)", re.DOTALL)


def of_ranks(
    run: Run, attempt: Attempt, node: int, code: int, phases: dict[int, str]
) -> LauncherError:
    """The error of a node whose `accelerate launch` ended with ``code``; ``phases`` by rank."""
    for path in run.rank_errors(attempt):
        return LauncherError.from_dict(read_json(path))
    host = socket.gethostname()
    launch_log = run.log(attempt, f"launch-{node:04d}")
    if found := ROOT_CAUSE.search(_tail(launch_log, TAIL_BYTES)):
        first, status = int(found[1]), int(found[2])
        what = f"rank {first} ended with {_exit(status)}"
        return describe(run, attempt, what, host, first, status)
    unfinished = [rank for rank, phase in phases.items() if phase != "finished"]
    if code == 0:
        return RunFailed(
            f"ranks {unfinished} were never started or did not finish",
            where=host,
            cause="accelerate started fewer processes than the plan has ranks",
            fix=f"see {launch_log}",
        )
    rank = unfinished[0] if len(unfinished) == 1 else None
    what = f"accelerate launch ended with {_exit(code)}; ranks {unfinished} had not finished"
    return describe(run, attempt, what, host, rank, code)


def describe(
    run: Run, attempt: Attempt, what: str, host: str, rank: int | None, exit_code: int | None = None
) -> RunFailed:
    """A RunFailed that carries the last lines of the rank's log, or of the launch where there is no rank."""
    log = run.log(attempt, "launch-0000" if rank is None else f"rank-{rank:04d}")
    if not _tail(log, 1):
        log = run.log(attempt, "launch-0000")  # a rank that never spoke: its launcher may say why
    lines = _tail(log, TAIL_BYTES).rstrip().splitlines()[-TAIL_LINES:]
    told = "".join(f"\n    | {line}" for line in lines)
    where = host if rank is None else f"rank {rank} on {host}"
    cause = (
        "out of memory, or somebody ended it from outside" if exit_code == -signal.SIGKILL else None
    )
    return RunFailed(
        what + told, where=where, cause=cause, fix=f"launcher resume {run.path} (log: {log})"
    )


def _exit(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _tail(path: Path, size: int) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - size))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
