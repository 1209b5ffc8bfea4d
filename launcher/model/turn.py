"""Turns: one process of a host at a time."""

from __future__ import annotations

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
    name, deadline = f"\0launcher {os.getuid()} {what}"[:100], time.monotonic() + patience_s
    with socket.socket(socket.AF_UNIX) as turn:
        while not (had := _bound(turn, name)) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        yield had


def _bound(turn: socket.socket, name: str) -> bool:
    try:
        turn.bind(name)  # one without a file
    except OSError:
        return False
    return True
