"""Exporter: a thread of node 0's agent that keeps the run's metrics file fresh."""

from __future__ import annotations

import contextlib
import threading
from types import TracebackType

from launcher import ledger
from launcher.disk import publish
from launcher.errors import LauncherError
from launcher.logs import get_logger
from launcher.report.metrics import metrics_text
from launcher.run import Run

EVERY_S = 10.0


class Exporter:
    """Context manager: metrics.prom is written at once, every ten seconds, and when it ends.

    With several worlds each one's agent writes it, all of it, by rename: the last one is right. What keeps it from
    being written is in the log once, and never ends a run.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
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
        self._write()

    def _loop(self) -> None:
        self._write()
        while not self._stop.wait(EVERY_S):
            self._write()

    def _write(self) -> None:
        try:
            self._finished = self._finished or ledger.Finished(self._run)
            text = metrics_text(self._run, self._finished)
            with publish(self._run.metrics, durable=False) as temporary:
                temporary.write_text(text, encoding="utf-8")
        except (OSError, ValueError, LookupError, TypeError, LauncherError) as error:
            with contextlib.suppress(OSError):
                if not self._complained:
                    get_logger().warning("no metrics: %r", error)
            self._complained = True
