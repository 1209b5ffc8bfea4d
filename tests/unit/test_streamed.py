"""Streaming: whatever stays in memory and whatever comes from files, the texts are the unsplit model's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models import ARCHITECTURES, byte_tokenizer, make_model
from streamed_cases import BATCH, LAYERS, WAYS, Case, run
from transformers import AutoModelForCausalLM

from launcher.model.recipe import recipes
from launcher.model.skeleton import Skeleton
from launcher.model.step import SweepModel
from launcher.model.weight_files import WeightFiles
from launcher.model.weights import Loading, load_model
from launcher.plan.checkpoint import Checkpoint


@pytest.fixture(scope="module", params=ARCHITECTURES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    path = tmp_path_factory.mktemp(request.param)
    return Case(make_model(path, request.param, num_hidden_layers=LAYERS))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("groups", [1, 3])
def test_texts_are_those_of_the_whole_model(case: Case, way: str, groups: int) -> None:
    batch = BATCH.model_copy(update={"groups": groups})
    model = case.streamed(WAYS[way], batch)
    assert isinstance(model, SweepModel)
    assert run(model, case.text, batch) == case.texts


def test_weights_are_cast_as_they_are_read(tmp_path: Path) -> None:
    """A checkpoint in half precision, computed in float32, and one in float32, computed in bfloat16."""
    whole = AutoModelForCausalLM.from_pretrained(make_model(tmp_path / "f32", "mixtral"))
    whole.half().save_pretrained(tmp_path / "f16")
    byte_tokenizer().save_pretrained(tmp_path / "f16")
    half = Case(tmp_path / "f16", "float32")
    assert run(half.streamed(WAYS["part resident"]), half.text, BATCH) == half.texts
    wide = Case(tmp_path / "f32", "bfloat16")
    skeleton = Skeleton(wide.spec, "bfloat16", LAYERS, torch.device("cpu"))
    found = recipes(skeleton.model, Checkpoint.read(tmp_path / "f32"))
    files = WeightFiles(tmp_path / "f32", ["model.safetensors"])
    state = load_model(wide.spec, Loading("bfloat16")).state_dict()
    assert state.keys() == found.keys()
    for name, value in state.items():
        read = torch.empty(value.numel(), dtype=torch.bfloat16)
        files.fill(found[name], read)
        assert torch.equal(read.view(value.shape), value), name


def test_rotary_tables_are_those_of_a_loaded_model(case: Case) -> None:
    loaded = load_model(case.spec, Loading("float32"))
    skeleton = Skeleton(case.spec, "float32", LAYERS, torch.device("cpu"))
    made = dict(skeleton.model.named_buffers())
    assert all(torch.equal(made[name], value) for name, value in loaded.named_buffers())


def test_tied_head_is_the_embedding(tmp_path: Path) -> None:
    tied = Case(make_model(tmp_path, "qwen2", tie_word_embeddings=True))
    for way in ("all streamed", "part resident"):
        assert run(tied.streamed(WAYS[way]), tied.text, BATCH) == tied.texts
