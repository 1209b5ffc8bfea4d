"""Exporter: a thread of node 0's agent that keeps the run's metrics file fresh, and W&B where it is asked for."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from types import TracebackType

from launcher import ledger
from launcher.disk import publish
from launcher.errors import LauncherError, Superseded
from launcher.logs import get_logger
from launcher.records import latest
from launcher.report.metrics import metrics_text
from launcher.report.snapshot import Snapshot
from launcher.run import Run
from launcher.runtime.tracker import Tracker

EVERY_S = 10.0


class Exporter:
    """Context manager: metrics.prom is written at once, every ten seconds, and when it ends.

    It is about all worlds, and one of their agents keeps it fresh: where another one has changed it since this one
    looked, this one leaves it alone, until nobody changes it any more. What keeps it from being written is in the log
    once, and never ends a run. ``tracker`` is told the same, each world's its own.
    """

    def __init__(self, run: Run, tracker: Tracker | None = None, world: int = 0) -> None:
        self._run = run
        self._tracker = tracker
        self._world = world
        self._known: tuple[int, int] | None = None  # the file, as this agent saw it last
        self._finished: ledger.Finished | None = None
        self._complained = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="exporter", daemon=True)

    def __enter__(self) -> Exporter:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        if kind is not None and issubclass(kind, Superseded):
            if self._tracker:
                self._tracker.abandon()
            return
        self._write(last=True)
        if self._tracker:
            self._tracker.close()

    def _loop(self) -> None:
        self._write()
        while not self._stop.wait(EVERY_S):
            self._write()

    def _write(self, *, last: bool = False) -> None:
        try:
            if self._left_to_another(last) and self._tracker is None:
                return
            self._finished = self._finished or ledger.Finished(self._run)
            seen = Snapshot.take(self._run, self._finished)
            if self._tracker:
                self._tracker.tell(seen)
            with publish(self._run.metrics, durable=False) as temporary:
                temporary.write_text(metrics_text(seen), encoding="utf-8")
            self._known = _version(self._run.metrics)
        except (OSError, ValueError, LookupError, TypeError, LauncherError) as error:
            with contextlib.suppress(OSError):
                if not self._complained:
                    get_logger().warning("no metrics: %r", error)
            self._complained = True

    def _left_to_another(self, last: bool) -> bool:
        """Whether another world's agent has written since this one looked, and will write again."""
        before, self._known = self._known, _version(self._run.metrics)
        if self._known in (None, before):
            return False
        return self._others_at_work() if last or before is None else True

    def _others_at_work(self) -> bool:
        ends = (
            self._run.attempt_file(attempt, "ended")
            for world, attempt in latest(self._run.list_attempts()).items()
            if world != self._world
        )
        return not self._run.manifest.exists() and not all(end.exists() for end in ends)


def _version(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns
