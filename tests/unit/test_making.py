"""Where a run can be made: in nobody's place or an empty directory, by one process, and never over anything else."""

from __future__ import annotations

import errno
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from jobs import launcher, write_job

from launcher.errors import Busy, LauncherError, PreflightError, UsageError
from launcher.run import Run


def refusal(path: Path) -> LauncherError:
    """What ``create`` says, as ``check_free`` does before it."""
    found = []
    for make in (Run(path).check_free, lambda: Run.create(path)):
        with pytest.raises(LauncherError) as caught:
            make()
        found.append(caught.value.as_dict())
    assert found[0] == found[1]
    return caught.value


def test_an_empty_directory_becomes_a_run_that_is_its_owners_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    run = Run.create(tmp_path)
    assert run.input.is_dir()
    assert tmp_path.stat().st_mode & 0o777 == 0o700


def test_of_many_at_once_one_makes_the_run(tmp_path: Path) -> None:
    def make(_: int) -> bool:
        try:
            return bool(Run.create(tmp_path / "run"))
        except Busy as busy:
            assert "somebody is making it" in str(busy)
            return False

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(make, range(64))) == 1


@pytest.mark.parametrize("below", [".", "x", "x/y"])
def test_a_file_in_the_way_is_named(tmp_path: Path, below: str) -> None:
    file = tmp_path / "file"
    file.touch()
    said = refusal(file / below)
    assert isinstance(said, UsageError)
    assert str(said).startswith(f"{file}: is a file, not a directory")


def test_what_is_there_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").touch()
    assert "not empty, and is no run" in refusal(tmp_path / "other").what
    run = Run.create(tmp_path / "run")
    assert "killed while making it" in (refusal(run.path).cause or "")
    run.job.touch()
    said = refusal(run.path)
    assert (said.exit_code, said.cause) == (75, None)
    assert f"launcher resume {run.path}" in (said.fix or "")


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("stage", ["run.Run.make_folders", "run.sync_file", "fill"])
def test_where_a_run_can_not_be_made_all_is_as_before(
    stage: str, there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also that it is the disk which is full is told by one exit code."""
    path = tmp_path / "run"
    if there:
        path.mkdir()
        path.chmod(0o2755)

    def full(*_: object) -> None:
        raise FULL

    def fill(run: Run) -> None:
        (run.input / "rows.bin").touch()
        run.plan.touch()
        full()

    if stage != "fill":
        monkeypatch.setattr(f"launcher.{stage}", full)
    with pytest.raises(PreflightError, match="No space left") as caught:
        Run.create(path, fill)
    assert (caught.value.cause, caught.value.exit_code) == ("the disk is full", 3)
    assert path.exists() == there
    if there:
        assert not list(path.iterdir())
        assert path.stat().st_mode & 0o7777 == 0o2755


def test_that_it_can_not_be_given_back_does_not_hide_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: object) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    def interrupted(_: Run) -> None:
        monkeypatch.setattr("shutil.rmtree", busy)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Run.create(tmp_path / "run", interrupted)


def test_a_dry_run_says_what_submit_would(tmp_path: Path) -> None:
    spec = write_job(tmp_path, 3)
    said = launcher("submit", spec, "--dry-run", "--run-dir", spec / "run", "--json", code=2)
    assert json.loads(said.stdout)["what"] == "is a file, not a directory"
    run = tmp_path / "run"
    run.mkdir()
    launcher("submit", spec, "--dry-run", "--run-dir", run, "--json")
    assert not list(run.iterdir())
