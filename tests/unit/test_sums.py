"""--verify-weights: bits that flipped, and weights that were exchanged, are noticed by their recorded sha256."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from adder import adder_path
from jobs import launcher, write_job

from launcher import plan_job, run_here, submit
from launcher.errors import PreflightError, WeightsError
from launcher.plan.sums import RECORD, recheck, verify_weights

FILE = "model.safetensors"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return shutil.copytree(adder_path(), tmp_path / "model")


def record(model: Path, line: str = "{sum}  {name}\n") -> None:
    digest = hashlib.sha256((model / FILE).read_bytes()).hexdigest()
    (model / RECORD).write_text(line.format(sum=digest, name=FILE))


def flip(model: Path) -> None:
    """One bit of the last tensor: the header is as it was."""
    data = bytearray((model / FILE).read_bytes())
    data[-5] ^= 1
    (model / FILE).write_bytes(data)


def verify(model: Path) -> dict[str, dict[str, object]]:
    return verify_weights(model, [FILE], lambda _: None)


@pytest.mark.parametrize(
    "line",
    [
        "{sum}  {name}\n",
        "{sum} *./{name}\n",
        "# ours\n\n" + "0" * 64 + "  other.safetensors\n{sum}  {name}",
        "Z" * 64 + "  {name}\n{sum}  {name}\n",
    ],
)
def test_files_are_compared_with_what_sha256sum_wrote(model: Path, line: str) -> None:
    record(model, line)
    assert verify(model)[FILE]["bytes"] == (model / FILE).stat().st_size
    flip(model)
    with pytest.raises(WeightsError) as caught:
        verify(model)
    assert FILE in caught.value.what and str(model) in str(caught.value)


def test_without_a_record_there_is_nothing_to_compare_with(model: Path) -> None:
    with pytest.raises(
        PreflightError, match=r"no sha256 is recorded of model\.safetensors"
    ) as caught:
        verify(model)
    assert "sha256sum" in str(caught.value.fix)
    assert not isinstance(caught.value, WeightsError)


def test_the_hubs_cache_is_its_own_record(model: Path, tmp_path: Path) -> None:
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot = blobs.parent / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    blob = blobs / hashlib.sha256((model / FILE).read_bytes()).hexdigest()
    shutil.copy(model / FILE, blob)
    (snapshot / FILE).symlink_to(Path("../../blobs") / blob.name)
    assert verify(snapshot)[FILE]["sha256"] == blob.name
    flip(snapshot)
    with pytest.raises(WeightsError):
        verify(snapshot)


def test_later_only_what_looks_changed_is_read_again(model: Path) -> None:
    record(model)
    seen = verify(model)
    recheck(model, seen)
    os.utime(model / FILE)  # as those do who keep a scratch filesystem from deleting their files
    recheck(model, seen)
    flip(model)
    with pytest.raises(WeightsError, match=FILE):
        recheck(model, seen)
    (model / FILE).unlink()
    with pytest.raises(WeightsError, match=FILE):
        recheck(model, seen)


def test_the_option_of_plan_and_run(model: Path, tmp_path: Path) -> None:
    spec = write_job(tmp_path, 3, model={"path": "model"})
    launcher("plan", spec, "--verify-weights", code=3)
    record(model)
    assert json.loads(launcher("plan", spec, "--verify-weights", "--json").stdout)["fits"]
    flip(model)
    launcher("plan", spec)  # nobody asked
    refused = launcher("run", spec, "--verify-weights", "--run-dir", tmp_path / "run", code=3)
    assert FILE in refused.stderr and "sha256" in refused.stderr
    with pytest.raises(WeightsError, match=FILE):
        plan_job(spec, verify=True)
    for start in (run_here, submit):
        with pytest.raises(WeightsError, match=FILE):
            start(spec, run_dir=tmp_path / "run", verify=True)
    assert not (tmp_path / "run").exists()
