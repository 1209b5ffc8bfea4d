"""What the ledger promises when processes are killed, disks are full, and several do the same at once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ledger_runs import FIRST, answer, make_run, rows_in, write

from launcher import ledger
from launcher.records import Attempt
from launcher.run import Run

HERE = str(Path(__file__).parent)
PRELUDE = f"""
import itertools, sys, time
sys.path.insert(0, {HERE!r})
from ledger_runs import FIRST, answer
from launcher import ledger
from launcher.errors import LauncherError
from launcher.records import Attempt
from launcher.run import Run
run = Run(sys.argv[1])
"""


def start(program: str, run: Run, *argv: object) -> subprocess.Popen[str]:
    argv = (sys.executable, "-c", PRELUDE + program, str(run.path), *argv)
    pipe = subprocess.PIPE
    return subprocess.Popen([str(arg) for arg in argv], stdin=pipe, stdout=pipe, text=True)


def together(processes: list[subprocess.Popen[str]]) -> list[str]:
    """Let processes that wait for a line go at once; what each of them prints."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    return outputs


WRITER = """
with ledger.Journal(run, Attempt(0, int(sys.argv[2])), 0) as journal:
    for row in range(int(sys.argv[3]), 20_000):
        journal.append(answer(row))
        if row % 10 == 0:
            print(journal.synced, flush=True)
"""


def test_rows_reported_synced_survive_kill_9_again_and_again(tmp_path: Path) -> None:
    run, first = make_run(tmp_path, 20_000), 0
    for number in range(1, 6):
        writer = start(WRITER, run, number, first)
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) > 200:
                break
        os.kill(writer.pid, signal.SIGKILL)
        reported = [int(line), *map(int, writer.stdout.read().split("\n")[:-1])][-1]
        writer.wait()
        done = ledger.finished_rows(run)
        assert done[first : first + reported].all()
        first += reported
    write(run, Attempt(0, 9), 0, *(answer(row) for row in range(20_000) if not done[row]))
    counts = ledger.merge(run)
    assert counts is not None
    assert counts.ok == 20_000
    assert [row["text"] for row in rows_in(run.outputs)] == [f"text {row}" for row in range(20_000)]


FILLER = """
resource_limit = int(sys.argv[2])
if resource_limit:
    import resource, signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource_limit, resource_limit))
journal = ledger.Journal(run, FIRST, 0)
try:
    for row in itertools.count():
        journal.append(answer(min(row, 19_999), "x" * 300))
        while not journal.synced:  # the first one fits
            time.sleep(0.001)
except LauncherError as error:
    print("append:", error.what)
try:
    journal.close()
except LauncherError as error:
    print("close:", error.what)
print(journal.synced)
"""


def check_full_disk(run: Run, output: str, says: str) -> None:
    """Both append and close said it, and what was counted as synced is really there."""
    appended, closed, synced = output.splitlines()
    assert says in appended
    assert says in closed
    assert 0 < int(synced) < 20_000
    assert ledger.finished_rows(run)[: int(synced)].all()


def test_a_file_size_limit_is_told_and_counts_no_row_that_is_not_there(tmp_path: Path) -> None:
    run = make_run(tmp_path, 20_000)
    output, _ = start(FILLER, run, 1 << 20).communicate()
    check_full_disk(run, output, "File too large")


def _can_mount() -> bool:
    argv = ["unshare", "--mount", "true"]
    return (
        shutil.which("unshare") is not None
        and subprocess.run(argv, check=False, capture_output=True).returncode == 0
    )


@pytest.mark.skipif(not _can_mount(), reason="mounting a small disk needs root")
def test_a_full_disk_is_told_and_counts_no_row_that_is_not_there(tmp_path: Path) -> None:
    run = make_run(tmp_path, 20_000)
    script = (
        'mount -t tmpfs -o size=1m none "$1/journals" && "$2" -c "$3" "$1" 0; '
        'cp "$1"/journals/*.jsonl "$1/copy"'
    )
    argv = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        script,
        "sh",
        run.path,
        sys.executable,
        PRELUDE + FILLER,
    ]
    output = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    (run.path / "copy").rename(run.journal(FIRST, 0))
    check_full_disk(run, output, "No space left")


MERGER = """
sys.stdin.readline()
for _ in range(5):
    print(ledger.merge(run))
"""


def test_merges_at_the_same_time_agree(tmp_path: Path) -> None:
    run = make_run(tmp_path, 2000)
    write(run, FIRST, 0, *(answer(row) for row in range(0, 2000)))
    write(run, Attempt(1, 1), 0, *(answer(row, "other") for row in range(0, 2000)))
    outputs = together([start(MERGER, run) for _ in range(3)])
    printed = {line for output in outputs for line in output.splitlines()}
    assert printed == {str(ledger.merge(run))}
    assert [row["text"] for row in rows_in(run.outputs)] == [f"text {row}" for row in range(2000)]
    assert not list(run.path.glob(".*"))


def test_a_merge_killed_at_any_moment_can_be_done_again(tmp_path: Path) -> None:
    run = make_run(tmp_path, 3000)
    write(run, FIRST, 0, *(answer(row) for row in range(3000)))
    for moment in range(8):
        merger = start("print(flush=True); ledger.merge(run)", run)
        assert merger.stdout is not None
        merger.stdout.readline()
        time.sleep(moment * 0.01)
        os.kill(merger.pid, signal.SIGKILL)
        merger.communicate()
        for path in (run.outputs, run.errors):
            assert not path.exists() or len(rows_in(path)) in (0, 3000)
    assert ledger.merge(run) == ledger.Counts(3000, 3000, 0, 6000, 9000)


CLAIMER = """
claims = ledger.Claims(run, Attempt(0, 1), int(sys.argv[2]))
chunk = claims.next()  # each has one, however late it comes to the race for the others
print(chunk.number, chunk.generation, flush=True)
sys.stdin.readline()
while chunk := claims.next():
    print(chunk.number, chunk.generation)
"""


@pytest.mark.parametrize("before", [None, Attempt(1, 1)])
def test_claims_raced_by_processes_give_each_chunk_to_one(
    tmp_path: Path, before: Attempt | None
) -> None:
    run = make_run(tmp_path, 600, writers=16)
    ledger.open_attempt(run, 0, {})
    if before:  # all chunks were another attempt's, and have to be taken over
        assert ledger.open_attempt(run, 1, {}) == before
        assert len(list(iter(ledger.Claims(run, before, 0).next, None))) == 300
        ledger.end_attempt(run, before, {})
    claimers = [start(CLAIMER, run, rank) for rank in range(4)]
    first = [claimer.stdout.readline() for claimer in claimers if claimer.stdout is not None]
    taken = [
        line.split() for output in [*first, *together(claimers)] for line in output.splitlines()
    ]
    assert sorted(int(number) for number, _ in taken) == list(range(300))
    assert {generation for _, generation in taken} == {"1" if before else "0"}
