"""What went wrong in an attempt, in words: the error a rank left behind, else its exit code and last lines."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

from launcher import logs
from launcher.errors import DISK_REFUSALS, LauncherError, RunFailed, lies_in
from launcher.job.load import load_resolved
from launcher.plan.checkpoint import Checkpoint
from launcher.records import Attempt
from launcher.run import Run, read_json, write_json
from launcher.runtime.oom import OomKills

TAIL_LINES = 12
TAIL_BYTES = 20_000
# torchrun's closing report names the first rank that it saw fail.
ROOT_CAUSE = re.compile(r"Root Cause.*?rank\s*: (\d+).*?exitcode\s*: (-?\d+)", re.DOTALL)
# What accelerate says of the only rank of a world.
DIED = re.compile(r"died with <Signals\.\w+: (\d+)>")
KILLED = "out of memory, or somebody ended it from outside"
UNSEEN = "it was ended from outside, crashed, or ran out of memory"
NATIVE_CRASH = "a crash in a library or a driver, below Python: the lines above, if any, say where"
CAUSES = {
    -signal.SIGKILL: KILLED,
    -signal.SIGTERM: "somebody asked it to end, from outside",
    -signal.SIGBUS: "a file that it computes with was cut short, or its disk failed",
    -signal.SIGSEGV: NATIVE_CRASH,
    -signal.SIGABRT: NATIVE_CRASH,
    -signal.SIGFPE: NATIVE_CRASH,
    -signal.SIGILL: "a library that was built for other processors than this host's",
}
NO_MEMORY = "fewer batch.slots, a shorter batch.max_length, or more memory for the job"


@contextlib.contextmanager
def refusals(run: Run) -> Iterator[None]:
    """What a disk or the run's directory refuses in the block becomes a RunFailed that names the file, or at least the
    run. Other OSErrors pass: of a network, of a program that is not there."""
    try:
        yield
    except OSError as error:
        if not _of_disk(error, run):
            raise
        # An agent's log gets it; on a terminal it would be noise.
        logs.get_logger().info("refused by the system", exc_info=True)
        raise RunFailed.of_system(error, run.path, f"launcher resume {run.path}") from error


def _of_disk(error: OSError, run: Run) -> bool:
    return error.errno in DISK_REFUSALS or lies_in(error, run.path)


def leave_error(run: Run, attempt: Attempt, rank: int, error: Exception) -> int:
    """Leave what ended a rank where its agent looks for it; the rank's exit status. That tells it alone where nothing can
    be written: a full disk may be what ended the rank."""
    here = f"rank {rank} on {os.uname().nodename}"
    after = f"see {run.log(attempt, f'rank-{rank:04d}')}; launcher resume {run.path}"
    told = error if isinstance(error, LauncherError) else _of_exception(error, run, after)
    told.where = here if told.where in (None, here) else f"{here}, {told.where}"
    told.fix = told.fix or after
    # The log takes no harm from a full disk.
    logs.get_logger().error("%s", told, exc_info=error if error.__traceback__ else None)
    with contextlib.suppress(OSError):
        write_json(run.rank_error(attempt, rank), told.as_dict())
    return told.exit_code


def of_ranks(
    run: Run, attempt: Attempt, node: int, code: int, phases: dict[int, str], oom_kills: OomKills
) -> LauncherError:
    """The error of a node whose `accelerate launch` ended with ``code``; ``phases`` by rank. ``oom_kills``: before
    the ranks were started."""
    return _with_cause(_of_ranks(run, attempt, node, code, phases), oom_kills)


def of_rank(
    run: Run, attempt: Attempt, rank: int, host: str, code: int | None, oom_kills: OomKills
) -> LauncherError:
    """The error of a rank that is gone before `accelerate launch` has said so; ``code`` is how, where that is known."""
    for path in run.rank_errors(attempt):
        return LauncherError.from_dict(read_json(path))
    how = "died, and nobody saw how" if code is None else f"ended with {exit_text(code)}"
    error = describe(run, attempt, f"rank {rank} {how}", host, rank, code)
    if code is None:
        error.cause = UNSEEN
    return _with_cause(error, oom_kills)


def _with_cause(error: LauncherError, before: OomKills) -> LauncherError:
    """Where it may have been the kernel, for want of memory, ask the kernel."""
    if error.cause in (KILLED, UNSEEN) and (cause := before.cause()):
        error.cause = cause
        error.fix = f"{NO_MEMORY}; then {error.fix}"
    return error


def _of_exception(error: Exception, run: Run, after: str) -> LauncherError:
    """An exception that ended a rank, in words; that memory ran out, on a device or the host, is told as that, as is what
    a disk refused. ``after``: what to do in any case."""
    told = f"{type(error).__name__}: {error}".removesuffix(": ")
    no_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if no_memory or "DefaultCPUAllocator: can't allocate memory" in told:
        return RunFailed(
            f"out of memory: {told}",
            cause="the batch takes more than the plan counted, or somebody else uses the memory",
            fix=f"{NO_MEMORY} (launcher plan says what is counted); {after}",
        )
    if isinstance(error, OSError) and _of_disk(error, run):
        # Without a name it may be any disk: the log's traceback says whose write it was.
        place = None if error.filename is None else run.path
        return RunFailed.of_system(error, place, after)
    return LauncherError(told)


def _of_ranks(
    run: Run, attempt: Attempt, node: int, code: int, phases: dict[int, str]
) -> LauncherError:
    for path in run.rank_errors(attempt):
        return LauncherError.from_dict(read_json(path))
    host = socket.gethostname()
    launch_log = run.log(attempt, f"launch-{node:04d}")
    if found := ROOT_CAUSE.search(_tail(launch_log, TAIL_BYTES)):
        first, status = int(found[1]), int(found[2])
        what = f"rank {first} ended with {exit_text(status)}"
        return describe(run, attempt, what, host, first, status)
    unfinished = [rank for rank, phase in phases.items() if phase != "finished"]
    if code == 0:
        return RunFailed(
            f"ranks {unfinished} were never started or did not finish",
            where=host,
            cause="accelerate started fewer processes than the plan has ranks",
            fix=f"see {launch_log}",
        )
    if died := DIED.search(_tail(launch_log, TAIL_BYTES)):
        code = -int(died[1])
    rank = unfinished[0] if len(unfinished) == 1 else None
    what = f"accelerate launch ended with {exit_text(code)}; ranks {unfinished} had not finished"
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
    cause = CAUSES.get(exit_code or 0)
    if exit_code == -signal.SIGBUS:
        cause = _broken_weights(run) or cause
    return RunFailed(
        what + told, where=where, cause=cause, fix=f"launcher resume {run.path} (log: {log})"
    )


def _broken_weights(run: Run) -> str | None:
    """What is wrong with the model's files, which a streamed model is computed with where they are."""
    try:
        Checkpoint.read(Path(load_resolved(run.job).model.path))
    except LauncherError as error:
        return str(error)
    return None


def exit_text(code: int) -> str:
    """How a process ended, from its ``returncode``."""
    if code >= 0:
        return f"exit code {code}"
    names = {number.value: number.name for number in signal.Signals}
    return f"signal {names.get(-code, -code)}"  # most of the real-time ones have no name


def _tail(path: Path, size: int) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - size))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
