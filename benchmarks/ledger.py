"""Input index and ledger: speed, durability lag and peak memory. `python benchmarks/ledger.py [--rows 1000000]`

Every phase runs in a process of its own, so that its peak memory is its own. Targets: 5,000 rows/s per
writer, each durable within 1 s; a million rows indexed in 20 s, scanned in 20 s, merged in 300 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.process import resident
from launcher import ledger
from launcher.input.prompts import build_index
from launcher.input.results import encode_line
from launcher.job.spec import JobSpec
from launcher.records import Attempt, Generation
from launcher.run import Run

PROMPT = "the quick brown fox jumps over the lazy dog " * 6
TEXT = "and so it went on and on, until somebody measured it; " * 8
RATE = 5000  # rows/s that a writer has to sustain
JOURNALS = 8


def answer(row: int) -> Generation:
    return Generation(row, f"row-{row}", TEXT, "length", 60, 90)


def index(folder: Path, rows: int) -> str:
    """Seconds to index the input."""
    source = folder / "in.jsonl"
    with source.open("w") as file:
        for row in range(rows):
            line = {"id": f"row-{row}", "prompt": PROMPT, "max_new_tokens": 16 + row % 100}
            file.write(json.dumps(line) + "\n")
    spec = JobSpec.model_validate(
        {"name": "bench", "model": {"path": "m"}, "input": {"path": str(source)}}
    )
    run = Run.create(folder / "run")
    started = time.perf_counter()
    build_index(spec, run.input, JOURNALS)
    return f"{time.perf_counter() - started:.1f} s"


def write(folder: Path, rows: int) -> str:
    """Rows/s of one writer: as fast as it can, against one fdatasync per row; then the lag at RATE."""
    run = Run(folder / "run")
    started, count = time.perf_counter(), 0
    with (folder / "each").open("wb", buffering=0) as file:
        while time.perf_counter() - started < 2:
            file.write(encode_line(answer(count)))
            os.fdatasync(file.fileno())
            count += 1
    each = count / (time.perf_counter() - started)
    started, count = time.perf_counter(), 50_000
    with ledger.Journal(run, Attempt(0, 1), 0) as journal:
        for row in range(count):
            journal.append(answer(row % rows))
    grouped = count / (time.perf_counter() - started)
    lag, kept_up = _lag(run, rows)
    return (
        f"{grouped:,.0f} rows/s, {grouped / each:.1f} x one sync per row; "
        f"at {RATE:,} rows/s ({kept_up:.0%} of it reached) durable within {lag * 1000:.0f} ms"
    )


def _lag(run: Run, rows: int, seconds: float = 10) -> tuple[float, float]:
    """Longest time from append to durable, and the share of RATE that was reached."""
    appended: list[float] = []
    seen, worst = 0, 0.0
    with ledger.Journal(run, Attempt(0, 1), 1) as journal:
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            now = time.perf_counter()
            if len(appended) < (now - started) * RATE:
                appended.append(now)
                journal.append(answer(len(appended) % rows))
            else:
                time.sleep(0.0002)
            while seen < journal.synced:
                worst = max(worst, time.perf_counter() - appended[seen])
                seen += 1
        rate = len(appended) / (time.perf_counter() - started)
    worst = max([worst, *(time.perf_counter() - moment for moment in appended[seen:])])
    return worst, rate / RATE


def fill(folder: Path, rows: int) -> str:
    """Rows/s of writing all rows into several journals, one after the other."""
    run = Run(folder / "run")
    for path in run.list_journals():
        path.unlink()
    started = time.perf_counter()
    for rank in range(JOURNALS):
        with ledger.Journal(run, Attempt(0, 1), rank) as journal:
            for row in range(rank, rows, JOURNALS):
                journal.append(answer(row))
    return f"{rows / (time.perf_counter() - started):,.0f} rows/s"


def scan(folder: Path, rows: int) -> str:
    """Seconds until a resumed rank knows which rows are finished."""
    started = time.perf_counter()
    assert ledger.finished_rows(Run(folder / "run")).sum() == rows
    return f"{time.perf_counter() - started:.1f} s"


def merge(folder: Path, rows: int) -> str:
    """Seconds to merge."""
    started = time.perf_counter()
    counts = ledger.merge(Run(folder / "run"))
    assert counts is not None
    assert counts.ok == rows
    took = time.perf_counter() - started
    ledger.write_manifest(Run(folder / "run"), counts)
    return f"{took:.1f} s"


def verify(folder: Path, rows: int) -> str:
    """Seconds to verify."""
    started = time.perf_counter()
    assert ledger.verify(Run(folder / "run")) == []
    return f"{time.perf_counter() - started:.1f} s"


def claim(folder: Path, rows: int) -> str:
    """Claims/s of one rank, of rows that nobody has finished."""
    run = Run(folder / "run")
    for path in run.list_journals():
        path.unlink()
    attempt = ledger.open_attempt(run, 0, {})
    claims = ledger.Claims(run, attempt, 0)
    started = time.perf_counter()
    count = sum(1 for _ in iter(claims.next, None))
    return f"{count / (time.perf_counter() - started):,.0f} chunks/s ({count} of them)"


PHASES = (index, write, fill, scan, merge, verify, claim)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where to work; 2 GB for a million rows")
    parser.add_argument("--phase", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.phase:
        phase = next(phase for phase in PHASES if phase.__name__ == given.phase)
        said = phase(given.folder, given.rows)
        print(f"{said}; CPU {time.process_time():.1f} s; peak {resident() >> 20} MiB")
        return
    folder = Path(tempfile.mkdtemp(dir=given.folder))
    print(f"{given.rows:,} rows, on {folder}")
    try:
        for phase in PHASES:
            argv = [__file__, "--rows", str(given.rows), "--folder", str(folder)]
            command = [sys.executable, *argv, "--phase", phase.__name__]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            print(f"{phase.__name__:8}{done.stdout.strip()}", flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
