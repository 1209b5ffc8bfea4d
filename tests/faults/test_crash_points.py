"""Every crash point in turn: the process that comes there is killed, or the power is cut, and the run is resumed.

Each protection is taken out once, to see that these tests would notice.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checker import check, fence, journal
from power import Disk

from launcher.crash import POINTS
from launcher.input.results import encode_line
from launcher.records import Generation

Play = Callable[..., int]
# Of a file that is not yet in its place, a power cut leaves no more than before it was written.
PUBLISHED = [point.removesuffix("renamed") for point in POINTS if point.endswith(".renamed")]
HIDDEN = {kind + moment for kind in PUBLISHED for moment in ("written", "synced")}


def go_on(play: Play, spec: Path, run: Path, **order: Any) -> int:
    """Resume the run; where it was not made yet, make it."""
    if run.exists() and not (run / "job.yaml").exists():
        shutil.rmtree(run)  # as `launcher run` says
    return play(spec, run, **order)


def rows_kept(run: Path) -> set[int]:
    """Rows of whole records in journals, as far as they count."""
    journals = (run / "journals").glob("w*.jsonl")
    return {r["index"] for path in journals for r in journal(path, fence(run, path.name))[0]}


def rows_told(told: Path) -> set[int]:
    return {int(line) for line in told.read_text().split()} if told.exists() else set()


@pytest.mark.parametrize("point", POINTS)
def test_kill_9(point: str, play: Play, spec: Path, memory: Path, rehearsed: Path) -> None:
    run, told = memory / "run", memory / "told"
    assert play(spec, run, crash=point, told=str(told)) != 0, "nobody came by"
    assert rows_told(told) <= rows_kept(run)
    assert go_on(play, spec, run) == 0
    assert check(run, rehearsed) == []
    assert list(run.glob(".*.tmp")) == []


def cut_power(play: Play, spec: Path, runs: Path, **order: Any) -> None:
    runs.mkdir()
    disk = Disk(runs, runs.with_name("platter"))
    assert play(spec, runs / "run", disk=[str(runs), str(disk.platter)], **order) != 0
    disk.cut()


@pytest.mark.parametrize("point", [point for point in POINTS if point not in HIDDEN])
def test_power_cut(point: str, play: Play, spec: Path, memory: Path, rehearsed: Path) -> None:
    run, told = memory / "runs" / "run", memory / "told"
    cut_power(play, spec, run.parent, crash=point, told=str(told))
    assert rows_told(told) <= rows_kept(run)
    assert go_on(play, spec, run) == 0
    assert check(run, rehearsed) == []


@pytest.mark.parametrize("without", [None, "sync of rows"])
def test_rows_told_survive_a_power_cut_because_they_are_synced(
    without: str | None, play: Play, spec: Path, memory: Path
) -> None:
    run, told = memory / "runs" / "run", memory / "told"
    cut_power(play, spec, run.parent, crash="ended.written", told=str(told), without=without)
    assert rows_told(told)
    assert (rows_told(told) <= rows_kept(run)) == (without is None)


@pytest.mark.parametrize("without", [None, "sync of outputs"])
def test_a_manifest_stands_for_results_because_they_are_synced(
    without: str | None, play: Play, spec: Path, memory: Path, rehearsed: Path
) -> None:
    run = memory / "runs" / "run"
    cut_power(play, spec, run.parent, crash="manifest.published", without=without)
    assert (run / "manifest.json").exists()
    assert (check(run, rehearsed) == []) == (without is None)


@pytest.mark.parametrize("without", [None, "sync of attempts"])
def test_an_attempts_number_is_never_taken_again_because_its_folder_is_synced(
    without: str | None, play: Play, spec: Path, memory: Path, rehearsed: Path
) -> None:
    run = memory / "runs" / "run"
    cut_power(play, spec, run.parent, crash="journals.durable", without=without)
    assert (play(spec, run) == 0) == (without is None)


@pytest.mark.parametrize("without", [None, "checksum"])
def test_a_damaged_record_is_computed_again_because_of_its_checksum(
    without: str | None, play: Play, spec: Path, memory: Path, rehearsed: Path
) -> None:
    run = memory / "run"
    assert play(spec, run, crash="journals.durable:2") != 0
    (path,) = (run / "journals").glob("w*.jsonl")
    lines = path.read_bytes().split(b"\n")
    lines[0] = lines[0].replace(b'"text": "', b'"text": "x')
    path.write_bytes(b"\n".join(lines))
    assert play(spec, run, without=without) == 0
    assert (check(run, rehearsed, damaged=1) == []) == (without is None)


@pytest.mark.parametrize("without", [None, "fence"])
def test_a_rank_of_an_old_attempt_changes_nothing_because_of_the_fence(
    without: str | None, play: Play, spec: Path, memory: Path, rehearsed: Path
) -> None:
    run = memory / "run"
    assert play(spec, run, crash="journals.durable:2") != 0
    assert play(spec, run, crash="merged.written", without=without) != 0
    old, new = sorted((run / "journals").glob("w*.jsonl"))
    late = journal(new)[0][0]
    zombie = Generation(**{**late, "text": "from behind a cut network"})
    with old.open("ab") as file:
        file.write(encode_line(zombie))
    assert play(spec, run, without=without) == 0
    assert (check(run, rehearsed) == []) == (without is None)


def test_a_write_that_fails_ends_the_attempt_and_loses_nothing(
    play: Play, spec: Path, memory: Path, rehearsed: Path
) -> None:
    run = memory / "run"
    for point in ("attempt.written", "journals.written:2", "outputs.written", "manifest.synced"):
        for fault in ("EIO", "ENOSPC"):
            number = 1 if ":" not in point else 2
            code = play(spec, run, crash=f"{point.split(':')[0]}:{number}:{fault}")
            assert code == 75, (point, fault)
    assert not (run / "manifest.json").exists()
    assert play(spec, run) == 0
    assert check(run, rehearsed) == []
