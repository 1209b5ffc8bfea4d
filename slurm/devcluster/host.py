"""The first process of one host: takes the host's name and files, starts its daemons, reaps what is orphaned.

Runs as process 1 inside the host's own namespaces; when it ends, the kernel ends everything in them.
Says `ready` on stdout, waits for a line on stdin (the network is plugged in by then), and starts a daemon
for each line after it (an argv in JSON), with its output in this process's own stderr.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys


def become(name: str, etc: str) -> None:
    """This host's name, its own files over the machine's, and a shared memory that no other host sees."""
    socket.sethostname(name)
    for file in ("hosts", "nsswitch.conf"):
        subprocess.run(["mount", "--bind", f"{etc}/{file}", f"/etc/{file}"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], check=True)


def reap(*_: object) -> None:
    """Orphans end up as children of process 1."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def main(name: str, etc: str) -> None:
    print("ready", flush=True)
    if not sys.stdin.readline():
        return  # whoever started this gave up
    become(name, etc)
    signal.signal(signal.SIGCHLD, reap)
    for line in sys.stdin:
        subprocess.Popen(json.loads(line), stdin=subprocess.DEVNULL, stdout=sys.stderr)
    while True:
        signal.pause()  # a daemon may die: the host stays, and so do the jobs on it


if __name__ == "__main__":
    main(*sys.argv[1:])
