"""Hosts that fail a run: a full disk, one that can't be written, memory that runs out, clocks that are hours apart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from checker import check
from gate import Gate
from jobs import PATIENCE_S, command, launcher, wait_for, write_job

Play = Callable[..., int]
CGROUPS = (
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
    (Path("/sys/fs/cgroup"), "memory.max"),
)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(place)]
    if subprocess.run(argv, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path) -> Path:
    """Leave not a byte."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            return ballast


# Where the run is at when the disk becomes full.
@pytest.mark.parametrize("point", ["job.published", "attempt.published", "merged.created"])
def test_a_full_disk_is_told_and_loses_nothing(
    point: str, play: Play, spec: Path, disk: Path, tmp_path: Path, rehearsed: Path
) -> None:
    run, said = disk / "run", tmp_path / "said"
    assert play(spec, run, crash=point) != 0
    ballast = fill(disk)
    assert play(spec, run, said=str(said)) == 75
    for word in ("No space left on device", str(run), "make room there, then launcher resume"):
        assert word in said.read_text()
    assert not (run / "manifest.json").exists()
    ballast.unlink()
    assert play(spec, run) == 0
    assert check(run, rehearsed) == []


@pytest.mark.parametrize(
    ("order", "word"),
    [
        ({}, "ended.json: No space left on device"),
        ({"hunger": "limit"}, "out of memory: MemoryError"),
    ],
)
def test_how_an_attempt_ended_is_told_where_it_can_not_be_written(
    order: dict[str, str], word: str, play: Play, spec: Path, memory: Path, tmp_path: Path
) -> None:
    run, said = memory / "run", tmp_path / "said"
    assert play(spec, run, crash="ended.written:1:ENOSPC", said=str(said), **order) == 75
    assert word in said.read_text()
    assert "make room there, then " in said.read_text()
    assert play(spec, run) == 0


@pytest.mark.parametrize("point", ["job.published", "merged.created"])
def test_a_disk_that_became_read_only_is_told_and_loses_nothing(
    point: str, play: Play, spec: Path, disk: Path, tmp_path: Path, rehearsed: Path
) -> None:
    run, said = disk / "run", tmp_path / "said"
    assert play(spec, run, crash=point) != 0
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert play(spec, run, said=str(said)) > 0
    assert "Read-only file system" in said.read_text()
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    assert play(spec, run) == 0
    assert check(run, rehearsed) == []


def test_a_rank_that_gets_no_memory_says_so(
    play: Play, spec: Path, memory: Path, tmp_path: Path, rehearsed: Path
) -> None:
    run, said = memory / "run", tmp_path / "said"
    assert play(spec, run, hunger="limit", said=str(said)) == 75
    assert "out of memory: MemoryError" in said.read_text()
    assert "batch.slots" in said.read_text()
    assert play(spec, run) == 0
    assert check(run, rehearsed) == []


@pytest.fixture
def little_memory() -> Iterator[Path]:
    """A cgroup whose processes may take 64 MiB."""
    for root, limit in CGROUPS:
        group = root / f"launcher-test-{os.getpid()}"
        try:
            group.mkdir()
            (group / limit).write_text(str(64 << 20))
        except OSError:
            if group.is_dir():
                group.rmdir()
            continue
        yield group
        group.rmdir()
        return
    pytest.skip("making a cgroup with a memory limit needs root")


def test_a_rank_that_the_kernel_ended_for_want_of_memory(
    play: Play, spec: Path, little_memory: Path, memory: Path, tmp_path: Path, rehearsed: Path
) -> None:
    run, said = memory / "run", tmp_path / "said"
    assert play(spec, run, hunger=str(little_memory), said=str(said)) == 75
    assert "likely cause: out of memory: the kernel has ended a process" in said.read_text()
    assert play(spec, run) == 0
    assert check(run, rehearsed) == []


def test_clocks_hours_apart_change_nothing(
    play: Play, spec: Path, memory: Path, rehearsed: Path
) -> None:
    run = memory / "run"
    assert play(spec, run, crash="journals.durable", hours=1) != 0
    assert play(spec, run, crash="journals.durable", hours=-1) != 0
    assert play(spec, run, crash="outputs.renamed", hours=2) != 0
    assert play(spec, run) == 0
    assert check(run, rehearsed) == []
    state = json.loads(launcher("status", run, "--json").stdout)
    assert state["state"] == "complete"
    assert len(state["attempts"]) == 3


def test_of_two_resumes_at_once_one_wins_and_the_other_says_which(tmp_path: Path) -> None:
    spec, run = write_job(tmp_path, 40), tmp_path / "run"
    program = (
        "import sys\nfrom pathlib import Path\nfrom launcher import prepare\nspec, run = map(Path, sys.argv[1:])\n"
        "prepare.create_run(prepare.plan_job(spec, [], here=True, say=print), run)"
    )
    subprocess.run([sys.executable, "-c", program, str(spec), str(run)], check=True)
    pipe, gate = subprocess.PIPE, Gate(tmp_path / "gate", 10)
    env = {**os.environ, **gate.env}
    both = [
        subprocess.Popen(command("resume", run), stdout=pipe, stderr=pipe, text=True, env=env)
        for _ in range(2)
    ]
    wait_for(lambda: any(each.poll() is not None for each in both))
    gate.open()
    said = {each.communicate(timeout=PATIENCE_S)[1]: each.returncode for each in both}
    assert sorted(said.values()) == [0, 75], said
    (loser,) = [text for text, code in said.items() if code == 75]
    assert "jobs " in loser or "process " in loser, loser
    assert check(run) == []
