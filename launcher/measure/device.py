"""Timers: spans of what a device computes, which on CUDA is not when Python asks for it."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from launcher.measure.spans import Recorder

if TYPE_CHECKING:
    import torch

# cudaEventElapsedTime gives milliseconds as float32: 4 us steps after a minute, 60 us after ten.
ANCHOR_S, ANCHOR_AT_ANY_COST_S = 60.0, 600.0


class Timer(Protocol):
    """``span`` is that of Recorder for work which the block gives to the device; ``poll`` is called now and then,
    best after something was waited for; ``close`` at the end."""

    def span(
        self, kind: str, stage: int = 0, group: int = 0, step: int = 0
    ) -> AbstractContextManager[None]: ...

    def poll(self) -> None: ...

    def close(self) -> None: ...


def timer(recorder: Recorder, device: torch.device) -> Timer:
    """The timer for work on ``device``: by the host's clock on a CPU, by events of its current stream on CUDA."""
    if device.type != "cuda":
        return HostTimer(recorder)
    import torch

    def mark() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(device))
        return event

    return CudaTimer(recorder, mark)


class HostTimer:
    """For devices that compute while Python waits."""

    def __init__(self, recorder: Recorder) -> None:
        self.span = recorder.span

    def poll(self) -> None:
        """Nothing is ever late here."""

    def close(self) -> None:
        """Nothing is ever late here."""


@dataclass(frozen=True)
class _Span:
    kind: str
    place: tuple[int, ...]
    begin: Any
    end: Any


class CudaTimer:
    """Puts an event before and after the block's work in its stream and reads them when they have passed, so
    that measuring waits for nothing.

    ``mark`` records an event: an object with ``query``, ``synchronize`` and ``elapsed_time`` like those of
    torch.cuda.Event. Times are counted from an anchor, an event whose time on the host's clock is
    known; it is renewed about once a minute, while the stream is idle.
    """

    def __init__(
        self,
        recorder: Recorder,
        mark: Callable[[], Any],
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._recorder, self._mark, self._now = recorder, mark, now
        self._pending: deque[_Span] = deque()
        self._renew_anchor()

    @contextlib.contextmanager
    def span(self, kind: str, stage: int = 0, group: int = 0, step: int = 0) -> Iterator[None]:
        """Time what the block queues on the stream; a block that raises leaves no span."""
        begin = self._mark()
        yield
        self._pending.append(_Span(kind, (stage, group, step), begin, self._mark()))

    def poll(self) -> None:
        """Hand the spans that are over to the recorder; waits for none, but for what is queued every ten minutes."""
        while self._pending and self._pending[0].end.query():
            self._record(self._pending.popleft())
        age = self._now() - self._anchor_time
        if age > (ANCHOR_AT_ANY_COST_S if self._pending else ANCHOR_S):
            self.close()
            self._renew_anchor()

    def close(self) -> None:
        """Wait for the spans that are not over and hand them over, too."""
        while self._pending:
            self._pending[0].end.synchronize()
            self._record(self._pending.popleft())

    def _record(self, span: _Span) -> None:
        begin, end = (self._host_time(event) for event in (span.begin, span.end))
        self._recorder.add(span.kind, begin, end, *span.place)

    def _host_time(self, event: Any) -> float:
        return self._anchor_time + float(self._anchor.elapsed_time(event)) / 1e3

    def _renew_anchor(self) -> None:
        self._anchor = self._mark()
        self._anchor.synchronize()
        self._anchor_time = self._now()
