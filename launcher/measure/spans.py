"""Recorder: who did what from when to when, written by each rank into its own timeline file.

A timeline is JSON, one document per line: a header, then batches of spans. docs/run-directory.md
describes it; timeline.py reads it. No numpy and no torch here.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from pathlib import Path
from typing import IO, Any

from launcher.errors import RunFailed

COMPUTE = ("prefill", "decode")
LOADING = ("weights", "load")  # waiting for weights while running; reading them before
KINDS = (*COMPUTE, "transfer", *LOADING, "wait", "no_work")

WINDOW_US = 10_000_000  # spans are kept or left out by windows of this length on the shared clock
TOTALS_S = 30.0  # how often a timeline that leaves spans out says what all of them sum to
TOKENS_S, TOKENS_PART = (
    0.05,
    1 / 400,
)  # samples of the token count: seconds, or part of the time so far

Row = tuple[Any, ...]  # kind, stage, group, step, start_us, end_us, and extras where there are any


def clock(offset: float = 0.0) -> dict[str, float]:
    """One moment on this process's monotonic clock and on its host's clock, in seconds.

    ``offset`` is what to add to this host's ``time.time()`` to get that of rank 0.
    """
    return {"monotonic": time.perf_counter(), "epoch": time.time(), "offset": offset}


class Recorder:
    """Appends spans to the timeline at ``path``; safe to use from several threads.

    ``header`` says whose spans they are: rank, replica, host, attempt, and ``clock``. Kinds: ``prefill`` and
    ``decode`` are compute; ``transfer`` is bytes on their way between devices; ``weights`` is waiting for
    weights, ``load`` reading them at the start; ``wait`` is blocked on another rank (idle, kept for
    the trace); ``no_work`` is a time when no request was left for the replica. ``stage`` is the device within
    the replica whose time it is.

    Spans reach the file about every ``flush_s``. The first ``limit`` are written in full; then every
    second window of ten seconds, then every fourth, and so on, so that a file grows with the logarithm
    of a run's length. All ranks choose the same windows. Totals stay exact, and the last ``tail`` spans
    are written by ``close``. With ``path`` None nothing is written.

    Raises RunFailed, from any method, when the file can't be written.
    """

    def __init__(
        self,
        path: Path | None,
        header: dict[str, Any],
        flush_s: float = 1.0,
        *,
        limit: int = 100_000,
        tail: int = 2_000,
    ) -> None:
        reference = header.get("clock") or clock()
        self._origin: float = reference["monotonic"]
        self._flush_s, self._flushed = flush_s, time.perf_counter()
        self._pending: list[Row] = []
        self._lock = threading.Lock()
        self._sampler = _Sampler(limit, round((reference["epoch"] + reference["offset"]) * 1e6))
        self._tail = _Tail(tail)
        self._totals: dict[tuple[int, str], list[float]] = {}  # (stage, kind): seconds, spans
        self._totals_due = 0.0
        self._tokens = _Samples(self._origin)
        self._path = path
        self._file: IO[bytes] | None = path.open("xb") if path else None
        self._write([{"format": 1, **header, "clock": reference, "window_us": WINDOW_US}])

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def span(self, kind: str, stage: int = 0, group: int = 0, step: int = 0) -> _Open:
        """``with recorder.span("decode", stage, group, step): ...`` adds the time that the block took."""
        return _Open(self, kind, stage, group, step)

    def add(
        self,
        kind: str,
        start: float,
        end: float,
        stage: int = 0,
        group: int = 0,
        step: int = 0,
        **extra: Any,
    ) -> None:
        """Add a span; times are of ``time.perf_counter()``, ``extra`` are JSON values for the trace."""
        if kind not in KINDS:
            raise ValueError(f"no such kind of span: {kind!r}; there are {', '.join(KINDS)}")
        origin = self._origin
        start_us, end_us = round((start - origin) * 1e6), round((end - origin) * 1e6)
        row = (kind, stage, group, step, start_us, end_us)
        with self._lock:
            self._pending.append((*row, extra) if extra else row)
            if end - self._flushed >= self._flush_s:
                self._flush()

    def count_tokens(self, total: int) -> None:
        """Note the new tokens made so far. Cheap: samples are taken ever more rarely, and the last is kept."""
        with self._lock:
            self._tokens.note(time.perf_counter(), total)

    def flush(self) -> None:
        """Hand what is recorded to the operating system, so that it outlives this process."""
        with self._lock:
            self._flush()

    def totals(self) -> dict[tuple[int, str], tuple[float, int]]:
        """Seconds and number of all spans so far, by (stage, kind), whether or not they are in the file."""
        with self._lock:
            self._flush()
            return {key: (seconds, int(n)) for key, (seconds, n) in self._totals.items()}

    def close(self) -> None:
        """Write what is left. Idempotent."""
        with self._lock:
            self._tokens.finish()
            self._flush()
            if self._sampler.stride > 1:
                self._write([{"spans": list(self._tail.rows)}, {"tail_us": self._tail.begin_us}])
                self._tail.rows.clear()
                self._write([self._totals_line()])
            if self._file:
                self._file.close()
                self._file = None

    def _flush(self) -> None:
        self._flushed = time.perf_counter()
        rows, self._pending = self._pending, []
        if tokens := self._tokens.take():
            self._write([{"tokens": tokens}])
        if not rows:
            return
        kept, stride = [], self._sampler.stride
        for row in rows:
            kind, stage, _, _, start, end = row[:6]
            total = self._totals.setdefault((stage, kind), [0.0, 0])
            total[0] += (end - start) / 1e6
            total[1] += 1
            if self._sampler.keep(start, end):
                kept.append(row)
            else:
                self._tail.add(row)
        lines: list[dict[str, Any]] = [{"spans": kept}] if kept else []
        if self._sampler.stride != stride:
            lines.append({"stride": self._sampler.stride, "from_us": self._sampler.since})
        if self._sampler.stride > 1 and self._flushed >= self._totals_due:
            self._totals_due = self._flushed + TOTALS_S
            lines.append(self._totals_line())
        self._write(lines)

    def _totals_line(self) -> dict[str, Any]:
        return {"totals": [[*key, *total] for key, total in self._totals.items()]}

    def _write(self, lines: list[dict[str, Any]]) -> None:
        if not self._file:
            return
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
        try:
            self._file.write(text.encode())
            self._file.flush()
        except OSError as error:
            self._file = None  # told once; closing what can't be written would only fail again
            raise RunFailed(
                f"can't write the timeline: {error.strerror}",
                where=str(self._path),
                cause="the filesystem is full, over quota or gone",
                fix="make room, then launcher resume",
            ) from error


class NullRecorder(Recorder):
    """Records nothing and costs next to nothing."""

    def __init__(self) -> None:
        super().__init__(None, {})

    def add(self, kind: str, start: float, end: float, *place: int, **extra: Any) -> None:
        """Forget the span."""


class _Open:
    """A span that has begun; a class, since a generator's context manager costs three times as much."""

    __slots__ = ("_place", "_recorder", "_start", "kind")

    def __init__(self, recorder: Recorder, kind: str, *place: int) -> None:
        self._recorder, self.kind, self._place = recorder, kind, place

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._recorder.add(self.kind, self._start, time.perf_counter(), *self._place)


class _Samples:
    """A count that only grows, at moments whose distance is a part of the time since the first."""

    def __init__(self, origin: float) -> None:
        self._origin, self._first, self._due = origin, 0.0, 0.0
        self._rows: list[tuple[int, int]] = []  # microseconds, count
        self._last: tuple[int, int] | None = None  # seen since the last row

    def note(self, now: float, total: int) -> None:
        self._last = (round((now - self._origin) * 1e6), total)
        if now < self._due:
            return
        self._first = self._first or now
        self._due = now + max(TOKENS_S, (now - self._first) * TOKENS_PART)
        self.finish()

    def finish(self) -> None:
        if self._last:
            self._rows.append(self._last)
            self._last = None

    def take(self) -> list[tuple[int, int]]:
        rows, self._rows = self._rows, []
        return rows


class _Sampler:
    """Which spans are kept: all up to ``limit``, then those that touch every ``stride``-th window.

    A span that began before the stride last grew is kept whatever its window, so what the file says of the
    time before is complete.
    """

    def __init__(self, limit: int, base_us: int) -> None:
        self.stride, self.since = 1, 0
        self._limit, self._base, self._kept = limit, base_us, 0

    def keep(self, start: int, end: int) -> bool:
        if self.stride > 1 and start >= self.since:
            first, last = ((self._base + at) // WINDOW_US for at in (start, end))
            if last // self.stride * self.stride < first:
                return False
        self._kept += 1
        if self._kept >= self._limit:
            self.stride, self.since, self._kept = self.stride * 2, max(end, self.since), 0
        return True


class _Tail:
    """The last spans that were left out; from ``begin_us`` on none is missing."""

    def __init__(self, size: int) -> None:
        self.rows: deque[Row] = deque()
        self.begin_us = 0
        self._size = size

    def add(self, row: Row) -> None:
        self.rows.append(row)
        if len(self.rows) > self._size:
            self.begin_us = max(self.begin_us, self.rows.popleft()[5])
