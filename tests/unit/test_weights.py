"""Loading: wrong weights are refused, by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models import make_model
from safetensors.torch import load_file, save_file

from launcher.errors import PreflightError, WeightsError
from launcher.job.spec import ModelSpec
from launcher.model import direct
from launcher.model.packed import PackedLinear, pack_linears
from launcher.model.weights import Loading, load_model

DOWN = "model.layers.1.mlp.down_proj.weight"


LOADERS = [load_model, direct.load]


@pytest.fixture(params=LOADERS, ids=["transformers", "direct"], autouse=True)
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.LOADERS", [request.param])


def load(path: Path, **options: Any) -> Any:
    return LOADERS[0](ModelSpec(path=str(path)), Loading(**{"dtype": "float32"} | options))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model", "llama")


def edit(path: Path, change: Any) -> None:
    """Rewrite the weights after ``change`` of their dict."""
    file = path / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def test_a_good_checkpoint_loads_in_the_dtype_asked_for(path: Path) -> None:
    model = load(path, dtype="bfloat16", device_map={"": "cpu"})
    assert model.dtype == torch.bfloat16
    assert not model.training
    expected = load_file(path / "model.safetensors")[DOWN].bfloat16()
    assert torch.equal(model.get_parameter(DOWN), expected)


def test_a_missing_weight_is_named(path: Path) -> None:
    edit(path, lambda tensors: tensors.pop(DOWN))
    with pytest.raises(WeightsError, match=DOWN.replace(".", r"\.")):
        load(path)


def test_a_weight_of_another_shape_is_named(path: Path) -> None:
    edit(path, lambda tensors: tensors.update({DOWN: torch.zeros(3, 3)}))
    with pytest.raises(WeightsError, match="down_proj"):
        load(path)


def test_a_bias_that_the_model_would_leave_out_is_named(path: Path) -> None:
    name = DOWN.replace("weight", "bias")
    edit(path, lambda tensors: tensors.update({name: torch.ones(64)}))
    with pytest.raises(WeightsError, match=name.replace(".", r"\.")):
        load(path)


def test_a_truncated_file_is_named(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        load(path)


def test_pickled_weights_are_refused(path: Path) -> None:
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    torch.save(tensors, path / "pytorch_model.bin")
    with pytest.raises(PreflightError):
        load(path)


def test_no_model_there(tmp_path: Path) -> None:
    with pytest.raises(PreflightError):
        load(tmp_path / "nothing")


def test_layers_on_disk_answer_as_those_in_memory(path: Path) -> None:
    places: dict[str, int | str] = {"model.embed_tokens": "cpu", "lm_head": "cpu"}
    places |= {"model.norm": "cpu", "model.rotary_emb": "cpu"}
    places |= {f"model.layers.{layer}": "disk" if layer > 1 else "cpu" for layer in range(4)}
    spread = load(path, device_map=places)
    assert spread.model.layers[3].mlp.down_proj.weight.is_meta
    tokens = torch.arange(5, 15)[None]
    assert torch.equal(spread(tokens).logits, load(path)(tokens).logits)


def test_flash_attention_is_refused_where_it_cant_be_had(path: Path) -> None:
    spec = ModelSpec(path=str(path), attention="flash_attention_2")
    with pytest.raises(PreflightError, match="flash-attn is not installed"):
        LOADERS[0](spec, Loading("bfloat16"))


def test_a_model_that_cannot_sdpa_attends_eagerly(tmp_path: Path) -> None:
    model = load(make_model(tmp_path, "gemma2"))
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 5e-2)])
def test_packed_layers_compute_the_same(tmp_path: Path, dtype: str, tolerance: float) -> None:
    path = make_model(tmp_path, "gpt_neox", tie_word_embeddings=True)  # its layers have biases
    model = load(path, dtype=dtype)
    for rows in (1, 7, 65):
        tokens = torch.randint(5, 400, (rows, 5))
        with torch.inference_mode():
            plain = model(tokens).logits
            packed = load(path, dtype=dtype)
            assert pack_linears(packed) == 4 * 4 + 1
            found = packed(tokens).logits
        assert (found - plain).abs().max() <= tolerance * plain.abs().max()
    assert packed.get_input_embeddings().weight is not None
    assert isinstance(packed.lm_head, PackedLinear)


def test_an_index_without_a_layer_is_refused(path: Path) -> None:
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    shards = {"model-00001-of-00002.safetensors": {}, "model-00002-of-00002.safetensors": {}}
    for name, tensor in tensors.items():
        second = "layers.2." in name or "layers.3." in name
        shards[sorted(shards)[second]][name] = tensor
    for file, held in shards.items():
        save_file(held, path / file, metadata={"format": "pt"})
    index = {n: file for file, held in shards.items() for n in held if "layers.2." not in n}
    (path / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )
    with pytest.raises(WeightsError, match=r"layers\.2"):
        load(path)
