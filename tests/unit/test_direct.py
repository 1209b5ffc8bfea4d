"""Direct loading: what transformers loads, bit for bit, from exactly its own bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models import ARCHITECTURES, make_model
from transformers import AutoModelForCausalLM

from launcher.job.spec import ModelSpec
from launcher.model import direct
from launcher.model.direct import load
from launcher.model.stage import load_stage
from launcher.model.weight_files import WeightFiles
from launcher.model.weights import Loading, load_model


def same(one: Any, other: Any) -> None:
    for kind in ("state_dict", "named_buffers"):
        found, expected = dict(getattr(one, kind)()), dict(getattr(other, kind)())
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype, name
            assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_is_what_transformers_loads(architecture: str, dtype: str, tmp_path: Path) -> None:
    spec = ModelSpec(path=str(make_model(tmp_path, architecture)))
    found = load(spec, Loading(dtype))
    same(found, load_model(spec, Loading(dtype)))
    assert not found.training
    assert all(parameter.device.type == "cpu" for parameter in found.parameters())


def test_tied_weights_are_one_tensor_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    plain = WeightFiles.read
    monkeypatch.setattr(
        WeightFiles,
        "read",
        lambda self, tensor, *rest: (
            read.append((tensor.file, tensor.begin)) or plain(self, tensor, *rest)
        ),
    )
    spec = ModelSpec(path=str(make_model(tmp_path, "gemma2", tie_word_embeddings=True)))
    model = load(spec, Loading("float32"))
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert len(read) == len(set(read)) == len(list(model.parameters()))


@pytest.mark.parametrize("architecture", ["llama", "mixtral", "gpt_neox"])
def test_stages_read_each_byte_once(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    plain = WeightFiles.close
    monkeypatch.setattr(
        WeightFiles, "close", lambda self: counted.append(self.bytes_read) or plain(self)
    )
    path = make_model(tmp_path, architecture)
    spec = ModelSpec(path=str(path))
    for layers in ((0, 1), (2, 3)):
        load_stage(spec, "float32", layers, 4)
    held = AutoModelForCausalLM.from_pretrained(path).num_parameters()
    assert sum(counted) == 4 * held


def test_what_it_cannot_read_is_loaded_by_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModelSpec(path=str(make_model(tmp_path, "llama")))
    expected = load(spec, Loading("bfloat16"))
    asked = []
    monkeypatch.setattr(
        direct, "load_model", lambda *given: asked.append(given) or load_model(*given)
    )
    monkeypatch.setattr(type(expected), "_keep_in_fp32_modules_strict", ["norm"])
    found = load(spec, Loading("bfloat16"))
    assert asked
    assert torch.equal(found.lm_head.weight, expected.lm_head.weight)
