"""Recorder and timelines: what is recorded is read back, on one clock, whatever happened to the writer."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launcher.errors import RunFailed
from launcher.measure.spans import KINDS, NullRecorder, Recorder, clock
from launcher.measure.timeline import Timeline, compute_window, read_timelines

DAY = 1_700_000_000.0


def header(rank: int = 0, **changes: Any) -> dict[str, Any]:
    """A header whose monotonic 0 is the epoch ``DAY``, unless told otherwise."""
    reference = {"monotonic": 0.0, "epoch": DAY, "offset": 0.0, **changes}
    return {
        "rank": rank,
        "replica": 0,
        "host": "node1",
        "attempt": "w0000-a0001",
        "clock": reference,
    }


def read(path: Path, extras: bool = False) -> Timeline:
    (timeline,) = read_timelines([path], extras)
    return timeline


def test_spans_come_back_as_recorded(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    recorder = Recorder(path, header(rank=3))
    recorder.add("prefill", 1.0, 1.5, stage=2, group=1, step=7, rows=4)
    recorder.add("transfer", 1.5, 1.625)
    recorder.close()
    timeline = read(path, extras=True)
    assert (timeline.rank, timeline.replica, timeline.host) == (3, 0, "node1")
    assert timeline.attempt.name == "w0000-a0001"
    first, second = (span.tolist() for span in timeline.spans)
    assert first == (DAY + 1.0, DAY + 1.5, KINDS.index("prefill"), 2, 1, 7)
    assert second == (DAY + 1.5, DAY + 1.625, KINDS.index("transfer"), 0, 0, 0)
    assert timeline.extras == {0: {"rows": 4}}
    assert timeline.totals == {(2, "prefill"): (0.5, 1), (0, "transfer"): (0.125, 1)}
    assert timeline.covered(DAY, DAY + 9).tolist() == [[DAY, DAY + 9]]


def test_context_manager_takes_the_time_of_the_block_even_if_it_fails(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "t.jsonl", header())
    before = DAY + time.perf_counter()
    with pytest.raises(KeyError), recorder.span("decode", stage=1, group=2, step=3):
        time.sleep(0.01)
        raise KeyError
    after = DAY + time.perf_counter()
    recorder.close()
    (span,) = read(tmp_path / "t.jsonl").spans
    assert span["end"] - span["start"] >= 0.0099
    assert before - 1e-5 <= span["start"] and span["end"] <= after + 1e-5
    assert (span["stage"], span["group"], span["step"]) == (1, 2, 3)


def test_ranks_with_other_clocks_meet_on_that_of_rank_0(tmp_path: Path) -> None:
    here = Recorder(tmp_path / "0.jsonl", header(0))
    there = Recorder(tmp_path / "1.jsonl", header(1, monotonic=5000.0, epoch=DAY - 90, offset=90.0))
    here.add("decode", 10.0, 11.0)
    there.add("decode", 5010.0, 5011.0)
    here.close()
    there.close()
    one, other = read_timelines([tmp_path / "0.jsonl", tmp_path / "1.jsonl"])
    assert one.spans["start"] == other.spans["start"]
    assert compute_window([one, other]) == (DAY + 10, DAY + 11)


def test_unknown_kind_is_refused(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "t.jsonl", header())
    with pytest.raises(ValueError, match=r"'decoding'.*prefill, decode"):
        recorder.add("decoding", 0, 1)


def test_a_timeline_has_one_writer(tmp_path: Path) -> None:
    Recorder(tmp_path / "t.jsonl", header())
    with pytest.raises(FileExistsError):
        Recorder(tmp_path / "t.jsonl", header())


def test_without_a_path_only_totals_are_kept() -> None:
    recorder = Recorder(None, header())
    recorder.add("decode", 1, 2, stage=1)
    recorder.add("decode", 2, 4, stage=1)
    assert recorder.totals() == {(1, "decode"): (3.0, 2)}
    recorder.close()


def test_null_recorder_keeps_nothing() -> None:
    recorder = NullRecorder()
    with recorder.span("decode", stage=1):
        recorder.add("prefill", 0, 1, stage=2, rows=3)
    assert recorder.totals() == {}
    recorder.close()


def test_spans_reach_the_file_while_the_run_goes(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "t.jsonl", {**header(), "clock": clock()}, flush_s=0.0)
    now = time.perf_counter()
    recorder.add("decode", now, now + 1)
    assert len(read(tmp_path / "t.jsonl").spans) == 1
    recorder.close()
    recorder.close()
    assert len(read(tmp_path / "t.jsonl").spans) == 1


def test_threads_lose_nothing(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "t.jsonl", header(), flush_s=0.0)

    def work(stage: int) -> None:
        for step in range(2000):
            recorder.add("decode", step, step + 0.5, stage, step=step)

    threads = [threading.Thread(target=work, args=(stage,)) for stage in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorder.close()
    timeline = read(tmp_path / "t.jsonl")
    assert timeline.totals == {(stage, "decode"): (1000.0, 2000) for stage in range(4)}
    assert sorted(timeline.spans["step"].tolist()) == sorted(list(range(2000)) * 4)


@pytest.mark.parametrize(
    "tail", [b'{"spans":[["decode",0,0,1,', b'{"spans":[\n{"spans":[]}\n', b"\0" * 40]
)
def test_a_torn_tail_ends_the_file(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "t.jsonl"
    recorder = Recorder(path, header())
    recorder.add("decode", 1, 2)
    recorder.close()
    with path.open("ab") as file:
        file.write(tail)
    assert len(read(path).spans) == 1


def test_files_that_say_nothing_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "torn.jsonl").write_text('{"rank": 0')
    assert read_timelines(tmp_path / name for name in ("empty.jsonl", "torn.jsonl", "none")) == []


def test_a_killed_rank_leaves_what_it_flushed(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    code = (
        "import json, sys; from launcher.measure.spans import Recorder\n"
        "r = Recorder(sys.argv[1] and __import__('pathlib').Path(sys.argv[1]), json.loads(sys.argv[2]))\n"
        "for step in range(500): r.add('decode', step, step + 1, step=step)\n"
        "r.flush(); print('ready', flush=True)\n"
        "while True: r.add('decode', 1e9, 1e9 + 1)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(path), json.dumps(header())], stdout=subprocess.PIPE
    )
    assert child.stdout and child.stdout.readline() == b"ready\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    steps = read(path).spans["step"][:500]
    assert steps.tolist() == list(range(500))


def test_a_full_disk_is_told_once_with_the_file(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    recorder = Recorder(tmp_path / "t.jsonl", header(), flush_s=1e9)
    for step in range(1000):
        recorder.add("decode", step, step + 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(RunFailed, match=r"t\.jsonl: can't write the timeline"):
            recorder.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    recorder.close()
    assert len(read_timelines([tmp_path / "t.jsonl"])) == 1


def long_run(
    path: Path, hours: float, rank: int = 0, step_s: float = 0.05, close: bool = True
) -> int:
    """A timeline of steps that fill half of their time, recorded without flushing on the way; spans made."""
    recorder = Recorder(path, header(rank), limit=2000, tail=100)
    count = int(hours * 3600 / step_s)
    for step in range(count):
        recorder.add("decode", step * step_s, step * step_s + step_s / 2, step=step)
        if step % 997 == 0:
            recorder.flush()
    recorder.close() if close else recorder.flush()
    return count


def test_a_long_run_keeps_its_first_part_its_end_and_windows_between(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    count = long_run(path, hours=2)
    timeline = read(path)
    assert timeline.totals == {(0, "decode"): (pytest.approx(count * 0.025), count)}
    steps = timeline.spans["step"]
    assert len(steps) < 2000 * 8 < count / 8
    assert len(np.unique(steps)) == len(steps)
    assert steps[:2000].tolist() == list(range(2000))
    assert sorted(steps)[-100:] == list(range(count - 100, count))


@pytest.mark.parametrize("close", [True, False])
def test_no_span_is_missing_where_the_timeline_says_so(tmp_path: Path, close: bool) -> None:
    path = tmp_path / "t.jsonl"
    count = long_run(path, hours=2, close=close)
    timeline = read(path)
    covered = timeline.covered(DAY, DAY + 7200)
    kept = set(timeline.spans["step"].tolist())
    starts = DAY + np.arange(count) * 0.05
    complete = np.zeros(count, bool)
    for begin, end in covered:
        complete |= (starts < end - 1e-6) & (starts + 0.025 > begin + 1e-6)
    missing = set(np.flatnonzero(complete).tolist()) - kept
    assert not missing
    assert len(kept) * 0.9 < complete.sum() < count / 4


def test_ranks_of_other_speeds_keep_the_same_windows(tmp_path: Path) -> None:
    long_run(tmp_path / "0", hours=2, step_s=0.05)
    long_run(tmp_path / "1", hours=2, step_s=0.2, rank=1)
    fast, slow = read_timelines([tmp_path / "0", tmp_path / "1"])
    coarse = fast.covered(DAY + 3600, DAY + 7000)
    fine = slow.covered(DAY + 3600, DAY + 7000)
    assert len(coarse) < len(fine)
    assert all(any(b <= begin and end <= e for b, e in fine) for begin, end in coarse)


def test_recorder_needs_no_numpy() -> None:
    code = "import sys, launcher.measure.spans; sys.exit('numpy' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
