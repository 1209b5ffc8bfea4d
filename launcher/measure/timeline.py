"""Reading timelines back: spans as arrays, on one clock, with what is known to be complete."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launcher.measure.spans import COMPUTE, KINDS
from launcher.records import Attempt

SPAN = np.dtype(
    [
        ("start", "f8"),  # seconds since the epoch of rank 0's clock
        ("end", "f8"),
        ("kind", "u1"),  # index into KINDS
        ("stage", "i4"),
        ("group", "i4"),
        ("step", "i8"),
    ]
)
Spans = NDArray[Any]  # of dtype SPAN
Intervals = NDArray[np.float64]  # (n, 2): begin and end in seconds

_CODES = {kind: code for code, kind in enumerate(KINDS)}


@dataclass
class Timeline:
    """One rank's spans in one attempt, in the order in which they ended.

    ``totals`` are seconds and number of all spans by (stage, kind), of those too that a long run left out of
    the file. ``extras`` maps a span's position to what was recorded with it. ``tokens`` are samples of the new
    tokens made so far: (seconds since the epoch, count).
    """

    rank: int
    replica: int
    host: str
    attempt: Attempt
    spans: Spans
    totals: dict[tuple[int, str], tuple[float, int]]
    extras: dict[int, dict[str, Any]] = field(default_factory=dict)
    strides: list[tuple[float, int]] = field(default_factory=list)
    window_s: float = 10.0
    tail_s: float | None = None
    tokens: list[tuple[float, int]] = field(default_factory=list)

    def select(self, *kinds: str) -> Spans:
        """The spans of these kinds."""
        return self.spans[np.isin(self.spans["kind"], [_CODES[kind] for kind in kinds])]

    def covered(self, begin: float, end: float) -> Intervals:
        """The parts of [begin, end] in which no span is missing; some may touch or overlap."""
        marks = [(-np.inf, 1), *self.strides, (np.inf, 1)]
        parts = [
            _windows(max(t0, begin), min(t1, end), stride, self.window_s)
            for (t0, stride), (t1, _) in pairwise(marks)
            if max(t0, begin) < min(t1, end)
        ]
        if self.tail_s is not None and self.tail_s < end:
            parts.append(np.array([[max(self.tail_s, begin), end]]))
        return np.concatenate(parts) if parts else np.empty((0, 2))


def read_timelines(paths: Iterable[Path], extras: bool = False) -> list[Timeline]:
    """The timelines at ``paths``, those left out that have no whole header or are gone.

    A file ends, for the reader, at its first line that is torn or is no JSON, as a rank that was killed
    leaves it. A million spans take about 40 MB. ``extras`` keeps what was recorded with spans.
    """
    found = (_read(path, extras) for path in paths)
    return [timeline for timeline in found if timeline]


def compute_window(timelines: Iterable[Timeline]) -> tuple[float, float] | None:
    """From the first start to the last end of a prefill or decode, or None if there is none."""
    computes = [spans for timeline in timelines if len(spans := timeline.select(*COMPUTE))]
    if not computes:
        return None
    begin = min(spans["start"].min() for spans in computes)
    return float(begin), float(max(spans["end"].max() for spans in computes))


def _read(path: Path, extras: bool) -> Timeline | None:
    lines = _lines(path)
    header = next(lines, None)
    if header is None:
        return None
    clock = header["clock"]
    origin = clock["epoch"] + clock["offset"]
    timeline = Timeline(
        rank=header["rank"],
        replica=header["replica"],
        host=header["host"],
        attempt=Attempt.parse(header["attempt"]),
        spans=np.empty(0, SPAN),
        totals={},
        window_s=header["window_us"] / 1e6,
    )
    reader = _Reader(timeline, origin, extras)
    for line in lines:
        reader.take(line)
    reader.finish()
    return timeline


class _Reader:
    """Fills a timeline from the lines after its header; spans become arrays by the ten thousand."""

    def __init__(self, timeline: Timeline, origin: float, extras: bool) -> None:
        self._timeline, self._origin, self._extras = timeline, origin, extras
        self._rows: list[list[Any]] = []
        self._arrays: list[Spans] = []
        self._count = 0
        self._summed = 0  # spans before this one are in the file's totals

    def take(self, line: dict[str, Any]) -> None:
        timeline = self._timeline
        if "spans" in line:
            self._add(line["spans"])
        elif "stride" in line:
            timeline.strides.append((self._origin + line["from_us"] / 1e6, line["stride"]))
        elif "tokens" in line:
            timeline.tokens += [(self._origin + at / 1e6, count) for at, count in line["tokens"]]
        elif "tail_us" in line:
            timeline.tail_s = self._origin + line["tail_us"] / 1e6
        elif "totals" in line:
            timeline.totals = {(stage, kind): (s, n) for stage, kind, s, n in line["totals"]}
            self._summed = self._count

    def finish(self) -> None:
        self._convert()
        if self._arrays:
            self._timeline.spans = np.concatenate(self._arrays)
        _add_totals(self._timeline.totals, self._timeline.spans[self._summed :])

    def _add(self, rows: list[list[Any]]) -> None:
        if self._extras:
            with_extras = ((at, row) for at, row in enumerate(rows, self._count) if len(row) > 6)
            self._timeline.extras.update((at, row[6]) for at, row in with_extras)
        self._rows += rows
        self._count += len(rows)
        if len(self._rows) >= 10_000:
            self._convert()

    def _convert(self) -> None:
        if self._rows:
            self._arrays.append(_array(self._rows, self._origin))
            self._rows = []


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for line in file:
            try:
                document = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                return
            if not isinstance(document, dict):
                return
            yield document


def _array(rows: list[list[Any]], origin: float) -> Spans:
    kind, stage, group, step, start, end = list(zip(*rows, strict=False))[:6]
    spans = np.empty(len(rows), SPAN)
    spans["kind"] = [_CODES[name] for name in kind]
    spans["stage"], spans["group"], spans["step"] = stage, group, step
    spans["start"] = origin + np.array(start) / 1e6
    spans["end"] = np.maximum(origin + np.array(end) / 1e6, spans["start"])
    return spans


def _add_totals(totals: dict[tuple[int, str], tuple[float, int]], spans: Spans) -> None:
    for stage in np.unique(spans["stage"]).tolist():
        for code, kind in enumerate(KINDS):
            some = spans[(spans["stage"] == stage) & (spans["kind"] == code)]
            if len(some):
                seconds, count = totals.get((stage, kind), (0.0, 0))
                took = float((some["end"] - some["start"]).sum())
                totals[stage, kind] = seconds + took, count + len(some)


def _windows(begin: float, end: float, stride: int, window_s: float) -> Intervals:
    if stride == 1:
        return np.array([[begin, end]])
    span = window_s * stride
    starts = np.arange(np.floor(begin / span), np.ceil(end / span)) * span
    windows = np.stack([starts, starts + window_s], axis=1).clip(begin, end)
    kept: Intervals = windows[windows[:, 0] < windows[:, 1]]
    return kept
