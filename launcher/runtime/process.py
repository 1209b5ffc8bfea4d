"""Child processes that can't outlive their parent. Linux only: parent-death signals and subreapers."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from launcher.errors import RunFailed

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
END_S = 15.0  # what a killed process is given to be gone
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
_libc = ctypes.CDLL(None, use_errno=True)
_companions: set[int] = set()  # this process's, as its children are


def die_with_parent(parent: int | None = None) -> None:
    """Ask the kernel to SIGKILL this process when its parent dies; leave at once if it has.

    ``parent`` is the pid that the parent should have, where it is known: it may have died before this call.
    """
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os._exit(143)


def adopt_orphans() -> None:
    """Make this process the parent of descendants whose own parent dies, so that it can end them."""
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def keep_freed_memory() -> None:
    """Have malloc keep what steps free for the next step: given back and fetched anew, page by page, it costs a fifth
    of a long prompt's step on a CPU. For a process that has loaded its model, so that what loading frees is given
    back. Nothing where the user set glibc's variables, or the C library is another one."""
    if hasattr(_libc, "mallopt") and not any(name.startswith("MALLOC_") for name in os.environ):
        _libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes
        _libc.mallopt(M_TRIM_THRESHOLD, 64 << 20)


def start(
    argv: Sequence[str],
    log: Path,
    env: Mapping[str, str],
    cwd: Path | None = None,
    *,
    companion: bool = False,
) -> subprocess.Popen[bytes]:
    """Start ``argv`` in a session of its own, output to ``log``, gone when this process is gone.

    SIGUSR2 is ignored in it: Slurm sends that to every process of a step, and torchrun would die of it and
    leave its workers behind. A ``companion`` has a pipe to its stdin, and outlives what ``end`` ends.
    """
    parent = os.getpid()

    def prepare() -> None:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        die_with_parent(parent)

    with log.open("ab") as output:
        child = subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE if companion else subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(env),
            cwd=cwd,
            start_new_session=True,
            preexec_fn=prepare,  # noqa: PLW1509 - only prctl and signal, before any thread exists
        )
    if companion:
        _companions.add(child.pid)
    return child


def dismiss(companion: subprocess.Popen[bytes], patience_s: float) -> int | None:
    """Close a companion's stdin, and its exit code once it has ended; None where it took longer and was killed."""
    assert companion.stdin is not None
    with contextlib.suppress(OSError):
        companion.stdin.close()
    try:
        return companion.wait(patience_s)
    except subprocess.TimeoutExpired:
        companion.kill()
        companion.wait()
        return None
    finally:
        _companions.discard(companion.pid)


def end(process: subprocess.Popen[bytes], patience_s: float = END_S) -> None:
    """SIGKILL ``process`` and everything below it, orphans too, and wait until all of it is gone; companions stay.

    Raises RunFailed if something is still there after ``patience_s`` (a process in an uninterruptible wait).
    """
    deadline = time.monotonic() + patience_s
    if process.poll() is None:
        process.kill()
    # Zombies, too, until they are reaped: one whose threads have not all ended yet still has its own children.
    while left := set(_children(os.getpid())) - _companions:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        reap()
        process.poll()
        if time.monotonic() > deadline:
            raise stuck(left)
        time.sleep(0.02)
    process.wait()


def stuck(pids: Iterable[int]) -> RunFailed:
    """The error of processes that were killed and are still there."""
    return RunFailed(
        f"processes {sorted(pids)} do not end",
        where=os.uname().nodename,
        cause="they wait for a device or a filesystem that does not answer",
        fix="look at the node before the run is resumed",
    )


def reap() -> None:
    """Collect children that have ended, adopted ones included."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def children(pid: int) -> list[int]:
    """Living direct children of ``pid``, zombies left out."""
    return [child for child in _children(pid) if start_time(child) is not None]


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found += [int(word) for word in (task / "children").read_text().split()]
    return found


def start_time(pid: int) -> int | None:
    """Clock ticks since boot at which ``pid`` started; None for a zombie or nobody. With the pid it names a process for good."""
    fields = _stat(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])


def cpu_ticks(pid: int) -> int | None:
    """Clock ticks for which ``pid`` has computed; None for nobody."""
    fields = _stat(pid)
    return None if fields is None else int(fields[11]) + int(fields[12])


def exit_code(pid: int) -> int | None:
    """How somebody else's child ended, as in Popen's ``returncode``, as long as its parent has not asked; else None.

    The kernel shows 0 to those who may not know, so 0 is None, too.
    """
    fields = _stat(pid)
    if fields is None or fields[0] != "Z":
        return None
    return os.waitstatus_to_exitcode(int(fields[49])) or None


def _stat(pid: int) -> list[str] | None:
    """What /proc/PID/stat says, from the state on; None where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def python(module: str, *arguments: str) -> list[str]:
    """argv that runs a module of ours with this interpreter."""
    return [sys.executable, "-m", module, *arguments]
