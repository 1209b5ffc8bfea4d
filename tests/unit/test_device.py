"""CudaTimer: spans say when a device computed, not when it was asked to. The stream is a fake; tests/gpu has the real one."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch

from launcher.measure.device import CudaTimer, HostTimer, timer
from launcher.measure.spans import Recorder
from launcher.measure.timeline import Timeline, read_timelines


class Stream:
    """A device that starts what is queued when it is free; ``time`` is the host's clock, in seconds."""

    def __init__(self) -> None:
        self.time = 100.0
        self.free_at = 0.0
        self.waits = 0

    def work(self, seconds: float) -> None:
        self.free_at = max(self.free_at, self.time) + seconds

    def mark(self) -> Event:
        return Event(self, max(self.free_at, self.time))


class Event:
    def __init__(self, stream: Stream, at: float) -> None:
        self.stream, self.at = stream, at

    def query(self) -> bool:
        return self.stream.time >= self.at

    def synchronize(self) -> None:
        if not self.query():
            self.stream.waits += 1
            self.stream.time = self.at

    def elapsed_time(self, end: Event) -> float:
        (milliseconds,) = struct.unpack("f", struct.pack("f", (end.at - self.at) * 1e3))
        return float(milliseconds)


class Scene:
    """A stream, its timer, and the timeline that comes of it."""

    def __init__(self, folder: Path) -> None:
        self.stream = Stream()
        clock = {"monotonic": 0.0, "epoch": 0.0, "offset": 0.0}
        header = {"rank": 0, "replica": 0, "host": "n", "attempt": "w0000-a0001", "clock": clock}
        self.path = folder / "t.jsonl"
        self.recorder = Recorder(self.path, header)
        self.timer = CudaTimer(self.recorder, self.stream.mark, lambda: self.stream.time)

    def timeline(self) -> Timeline:
        self.recorder.close()
        (found,) = read_timelines([self.path])
        return found

    def times(self) -> list[tuple[float, float]]:
        spans = self.timeline().spans
        return [(round(float(s["start"]), 6), round(float(s["end"]), 6)) for s in spans]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_spans_are_those_of_the_device(scene: Scene) -> None:
    for step in range(2):  # queued at once, computed one after the other
        with scene.timer.span("decode", 1, 2, step):
            scene.stream.work(0.5)
        scene.timer.poll()
    assert scene.recorder.totals() == {}
    scene.stream.time += 0.75
    scene.timer.poll()
    assert scene.recorder.totals() == {(1, "decode"): (0.5, 1)}
    scene.stream.time += 9
    scene.timer.poll()
    assert scene.stream.waits == 0
    assert scene.times() == [(100.0, 100.5), (100.5, 101.0)]


def test_close_waits_for_what_is_queued(scene: Scene) -> None:
    with scene.timer.span("prefill"):
        scene.stream.work(2)
    scene.timer.close()
    assert scene.stream.waits == 1
    assert scene.times() == [(100.0, 102.0)]


def test_a_block_that_fails_leaves_no_span(scene: Scene) -> None:
    with pytest.raises(KeyError), scene.timer.span("decode"):
        raise KeyError
    scene.timer.close()
    assert scene.times() == []


@pytest.mark.parametrize("always_busy", [False, True])
def test_times_stay_sharp_for_hours(scene: Scene, always_busy: bool) -> None:
    expected = []
    for _ in range(5_000):
        with scene.timer.span("decode"):
            begin = max(scene.stream.free_at, scene.stream.time)
            scene.stream.work(1.01)
            expected.append((begin, begin + 1.01))
        scene.stream.time += 1.0 if always_busy else 1.1
        scene.timer.poll()
    scene.timer.close()
    spans = scene.timeline().spans
    limit = 1e-4 if always_busy else 1e-5
    assert abs(spans["start"] - [begin for begin, _ in expected]).max() < limit
    assert abs(spans["end"] - [end for _, end in expected]).max() < limit
    assert scene.stream.waits <= (100 if always_busy else 0)


def test_a_cpu_is_timed_by_the_host() -> None:
    recorder = Recorder(None, {})
    found = timer(recorder, torch.device("cpu"))
    assert isinstance(found, HostTimer)
    with found.span("decode", stage=3):
        pass
    found.poll()
    found.close()
    assert list(recorder.totals()) == [(3, "decode")]
