"""Hosts made of namespaces: boot one, find it again, enter it, end it and never anything else."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NAMESPACES = ("--net", "--uts", "--ipc", "--mount", "--pid")
# Slave mounts: what is mounted on the machine later is seen inside, nothing done inside is seen outside.
UNSHARE = [
    "unshare",
    *NAMESPACES,
    "--fork",
    "--kill-child",
    "--mount-proc",
    "--propagation",
    "slave",
]
HOST = str(Path(__file__).with_name("host.py"))


@dataclass(frozen=True)
class Host:
    """A host's first process. Ids are used again; an id and a start time (clock ticks since boot) are not."""

    pid: int
    started: int

    def alive(self) -> bool:
        return _start(self.pid) == self.started

    def enter(self, *namespaces: str) -> list[str]:
        """What to put before a command so that it runs on this host (or only in the namespaces given)."""
        return ["nsenter", f"--target={self.pid}", *(namespaces or NAMESPACES)]

    def end(self) -> None:
        """Cut its power: kills every process of the host, and returns when they are gone."""
        with contextlib.suppress(ProcessLookupError), _pidfd(self.pid) as process:
            if self.alive():
                signal.pidfd_send_signal(process, signal.SIGKILL)
                if not select.select([process], [], [], 30)[0]:
                    raise TimeoutError(f"process {self.pid} was killed and does not end")


@dataclass
class Booting:
    """A host between power-on and its last daemon; `process` is its outermost one, ours to wait for."""

    host: Host
    process: "subprocess.Popen[str]"

    def tell(self, line: str) -> None:
        """What host.py waits for: first any line, once its network is there."""
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def start(self, daemon: list[str]) -> None:
        self.tell(json.dumps(daemon))

    def done(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()


def boot(prefix: list[str], arguments: list[str], env: dict[str, str], log: Path) -> Booting:
    """A new host in new namespaces, running host.py with `arguments`; `prefix` says where and how it is started."""
    python = [sys.executable, "-I", "-S", HOST]
    with log.open("a") as stderr:
        process = subprocess.Popen(
            [*prefix, *UNSHARE, *python, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=env,
            text=True,
            start_new_session=True,
        )
    assert process.stdout
    with process.stdout as answer:
        if answer.readline() != "ready\n":
            process.communicate()  # closes its stdin, which ends whatever of it did start
            raise OSError(
                f"host {arguments[0]} did not start; {log} says: {log.read_text()[-500:]}"
            )
    pid = _innermost(process.pid)
    return Booting(Host(pid, _start(pid) or 0), process)


def _innermost(pid: int) -> int:
    """From nsenter by way of unshare to host.py, which has no children yet."""
    while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        pid = int(children[0])
    return pid


def _start(pid: int) -> int | None:
    """When a process started; None for one that is gone, or dead and not yet reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


@contextlib.contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    """Holds on to a process, so that what is checked and what is signalled are the same one."""
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
