"""Pickled weights are converted by whoever asks for it, and nothing in them ever runs."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from adder import adder_path
from jobs import command, launcher, write_job
from safetensors.torch import load_file

TENSORS = load_file(adder_path() / "model.safetensors")


class Evil:
    def __init__(self, mark: str) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self._mark}",)


def pickled(folder: Path, *parts: dict[str, torch.Tensor]) -> Path:
    """The adder, its weights in as many .bin files."""
    model = folder / "pickled"
    shutil.copytree(adder_path(), model)
    (model / "model.safetensors").unlink()
    names = [f"pytorch_model-{n}.bin" for n in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        torch.save(part, model / name)
    if len(parts) == 1:
        (model / names[0]).rename(model / "pytorch_model.bin")
    else:
        placed = {key: name for name, part in zip(names, parts, strict=True) for key in part}
        (model / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": placed}))
    return model


@pytest.mark.parametrize("shards", [1, 3])
def test_the_weights_are_the_same_and_the_model_plans(shards: int, tmp_path: Path) -> None:
    items = list(TENSORS.items())
    model = pickled(tmp_path, *(dict(items[n::shards]) for n in range(shards)))
    spec = write_job(tmp_path, 3, model={"path": "pickled"})
    refused = launcher("plan", spec, code=3)
    assert "pickled" in refused.stderr and "launcher convert" in refused.stderr
    launcher("convert", model, tmp_path / "new" / "model")
    found = {}
    for path in (tmp_path / "new" / "model").glob("*.safetensors"):
        found |= load_file(path)
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[key], TENSORS[key]) for key in found)
    assert json.loads(launcher("plan", spec, "model.path=new/model", "--json").stdout)["fits"]
    assert not list((tmp_path / "new").glob(".*"))
    launcher("convert", model, tmp_path / "new" / "model", code=2)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_does_not_run(zipped: bool, tmp_path: Path) -> None:
    model = pickled(tmp_path, dict(TENSORS))
    mark, path = tmp_path / "pwned", model / "pytorch_model.bin"
    if zipped:
        torch.save({**TENSORS, "evil": Evil(str(mark))}, path)
    else:
        path.write_bytes(pickle.dumps(Evil(str(mark))))
    said = launcher("convert", model, tmp_path / "new", code=3).stderr
    assert "which could run code" in said and "pytorch_model.bin" in said
    assert not mark.exists() and not (tmp_path / "new").exists()


def test_half_a_model_is_none(tmp_path: Path) -> None:
    part = {key: value for key, value in TENSORS.items() if ".layers.2." not in key}
    said = launcher("convert", pickled(tmp_path, part), tmp_path / "new", code=3).stderr
    assert "layers.2" in said
    assert not (tmp_path / "new").exists()


def test_where_there_is_nothing_to_convert(tmp_path: Path) -> None:
    assert (
        "no pickled weights" in launcher("convert", adder_path(), tmp_path / "new", code=2).stderr
    )


def test_without_room_there_is_no_half_model(tmp_path: Path) -> None:
    done = subprocess.run(
        command("convert", pickled(tmp_path, dict(TENSORS)), tmp_path / "new"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "not written" in done.stderr and "make room" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pickled"]
