"""What measuring costs: nanoseconds per span, its share of a 20 ms step, and the time to account for a million spans.

Run: python benchmarks/measure.py
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from launcher.measure.bubble import account, shares
from launcher.measure.spans import NullRecorder, Recorder, clock
from launcher.measure.timeline import read_timelines

STEP_S = 0.020
SPANS_PER_STEP = 4  # wait, compute, transfer, and one to spare
SPANS = 50_000
REPEATS = 5  # the fastest counts: whatever else the machine does only adds
MILLION = 1_000_000


def header(rank: int) -> dict[str, object]:
    return {"rank": rank, "replica": 0, "host": "h", "attempt": "w0000-a0001", "clock": clock()}


def cost(recorder: Recorder, spans: int = SPANS) -> float:
    """Seconds per span, all flushes included."""
    started = time.perf_counter()
    for step in range(spans):
        with recorder.span("decode", 1, 2, step):
            pass
    recorder.close()
    return (time.perf_counter() - started) / spans


def best(make: Callable[[int], Recorder]) -> float:
    return min(cost(make(repeat)) for repeat in range(REPEATS))


def busy_timeline(path: Path, rank: int, spans: int, origin: float) -> Path:
    """Steps of a ring of two stages, back to back."""
    recorder = Recorder(path, header(rank), limit=spans + 1)
    for step in range(spans):
        start = origin + (step + 0.1 * rank) * STEP_S
        recorder.add("decode", start, start + 0.9 * STEP_S, rank, step % 2, step)
    recorder.close()
    return path


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        full = best(lambda i: Recorder(Path(folder, f"full-{i}"), header(0), limit=SPANS + 1))
        sampled = best(lambda i: Recorder(Path(folder, f"sampled-{i}"), header(0), limit=1000))
        null = best(lambda _: NullRecorder())
        for name, each in (("in full", full), ("sampled", sampled), ("recording nothing", null)):
            share = SPANS_PER_STEP * each / STEP_S
            print(
                f"a span, {name}: {each * 1e9:.0f} ns; {SPANS_PER_STEP} per 20 ms step: {share:.3%}"
            )
        size = Path(folder, "full-0").stat().st_size / SPANS
        origin = time.perf_counter()
        paths = [
            busy_timeline(Path(folder, str(rank)), rank, MILLION // 2, origin) for rank in (0, 1)
        ]
        started = time.perf_counter()
        timelines = read_timelines(paths)
        read = time.perf_counter()
        result = account(timelines)
        done = time.perf_counter()
        print(f"in the file: {size:.0f} bytes per span")
        print(f"a million spans: read in {read - started:.1f} s, accounted in {done - read:.1f} s")
        print("shares of stage 0:", {name: round(x, 3) for name, x in shares(result[0, 0]).items()})


if __name__ == "__main__":
    main()
