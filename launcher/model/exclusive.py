"""What one process of a host does at a time."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE_S = 120.0
POLL_S = 0.05


@contextmanager
def only_one(what: str, patience_s: float = PATIENCE_S) -> Iterator[bool]:
    """While no other process of this user on this host does ``what``, or after waiting so long for it: for what is
    better, but need not be, done by one at a time. Gives whether it is this one's turn. The kernel ends that of a
    process that ends."""
    key = hashlib.sha256(f"{os.getuid()} {what}".encode()).hexdigest()
    deadline = time.monotonic() + patience_s
    with socket.socket(socket.AF_UNIX) as turn:
        while (refused := _bind(turn, f"\0launcher {key}")) == errno.EADDRINUSE:
            if time.monotonic() > deadline:
                break
            time.sleep(POLL_S)
        yield not refused


def _bind(turn: socket.socket, name: str) -> int | None:
    """Take a name without a file; the number of the error that this came to."""
    try:
        turn.bind(name)
    except OSError as error:
        return error.errno or errno.EINVAL
    return None
