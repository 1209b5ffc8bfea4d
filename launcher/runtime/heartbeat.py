"""Heartbeat: a rank's status file, rewritten from a thread, and its ear for requests to stop."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import asdict

from launcher.logs import get_logger
from launcher.records import Attempt, RankStatus
from launcher.run import Run, write_json

BEAT_S = 0.5


class Heartbeat:
    """Publishes ``status`` about twice a second and looks for the attempt's drain marker.

    A thread, since a rank that waits in a collective runs nothing else. The main thread changes the fields
    of ``status``; only this thread and ``phase`` write the file.
    """

    def __init__(self, run: Run, attempt: Attempt, rank: int, replica: int, pid: int) -> None:
        self.status = RankStatus(attempt.name, rank, replica, socket.gethostname(), pid)
        self.draining = threading.Event()
        self._path = run.status(attempt, rank)
        self._drain = run.attempt_file(attempt, "drain")
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="heartbeat", daemon=True)
        self.phase("starting")
        self._thread.start()

    def phase(self, name: str) -> None:
        """Enter a phase of RankStatus and say so at once."""
        self.status.phase, self.status.phase_since = name, time.time()
        self._write()

    def measured(self, **figures: float) -> None:
        """Add to the status's figures: by a new dict, since the thread may be writing the old one."""
        self.status.figures = {**self.status.figures, **figures}

    def close(self) -> None:
        """Stop the thread after a last write."""
        self._stop.set()
        self._thread.join()
        self._write()

    def _loop(self) -> None:
        while not self._stop.wait(BEAT_S):
            try:
                if self._drain.exists():
                    self.draining.set()
                self._write()
            except OSError as error:  # a full disk must not end a rank that can still compute
                get_logger().warning("status not written: %s", error)

    def _write(self) -> None:
        with self._lock:
            self.status.updated = time.time()
            write_json(self._path, asdict(self.status), durable=False)
