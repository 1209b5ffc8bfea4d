"""Checkpoints: shapes against the real classes, and what is read of whole files."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_edits import add_tensor, header_of, sharded
from models import make_model
from transformers import AutoConfig, AutoModelForCausalLM

from launcher.plan.checkpoint import Checkpoint
from launcher.plan.shapes import FAMILIES, known_config, parameters

SMALL: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}
GROUPED = {"num_key_value_heads": 2}
VARIANTS = [
    ("llama", {}),
    ("llama", {**GROUPED, "attention_bias": True, "mlp_bias": True, "head_dim": 24}),
    ("llama", {"tie_word_embeddings": True}),
    ("qwen2", {**GROUPED, "tie_word_embeddings": True}),
    ("qwen3", {**GROUPED, "attention_bias": True}),
    ("mistral", {**GROUPED, "head_dim": 32}),
    ("mixtral", {**GROUPED, "num_local_experts": 4}),
    ("gemma2", {**GROUPED, "head_dim": 32}),
    ("gemma3_text", {**GROUPED, "head_dim": 32}),
    ("gemma3_text", {"num_hidden_layers": 7, "attention_bias": True, "tie_word_embeddings": False}),
    ("gpt_neox", {}),
    ("gpt_neox", {"attention_bias": False, "tie_word_embeddings": True}),
    ("phi3", {**GROUPED}),
]


@pytest.mark.parametrize(("kind", "changes"), VARIANTS)
def test_shapes_from_a_config_are_those_of_the_real_class(
    kind: str, changes: dict[str, Any]
) -> None:
    config = AutoConfig.for_model(kind, **(SMALL | changes))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    real = {name: tuple(p.shape) for name, p in model.named_parameters()}
    saved = json.loads(config.to_json_string())  # what config.json holds, defaults left out and all
    assert parameters(saved) == real
    assert Checkpoint.from_config(saved).parameters == sum(map(math.prod, real.values()))


@pytest.mark.parametrize(
    ("name", "count"),
    [  # as the models' own pages and papers give them
        ("meta-llama/Llama-2-70b-hf", 68_976_648_192),
        ("meta-llama/Llama-3.1-70B-Instruct", 70_553_706_496),
        ("meta-llama/Llama-3.1-405B", 405_853_388_800),
        ("Qwen/Qwen2.5-72B-Instruct", 72_706_203_648),
        ("mistralai/Mixtral-8x7B-v0.1", 46_702_792_704),
        ("mistralai/Mixtral-8x22B-v0.1", 140_620_634_112),
        ("google/gemma-2-27b", 27_227_128_320),
        ("EleutherAI/gpt-neox-20b", 20_554_567_680),
        ("microsoft/Phi-3-medium-4k-instruct", 13_960_238_080),
    ],
)
def test_well_known_models(name: str, count: int) -> None:
    checkpoint = Checkpoint.known(name)
    assert checkpoint is not None
    assert checkpoint.parameters == count
    assert "built-in table" in (checkpoint.note or "")


def test_table_of_well_known_models_has_no_dead_entry() -> None:
    table = json.loads(
        (Path(sys.modules["launcher.plan"].__path__[0]) / "known_models.json").read_text()
    )
    for name in table["models"]:
        config = known_config(name)
        assert config is not None
        assert config["model_type"] in FAMILIES
        assert Checkpoint.known(name) is not None
    assert Checkpoint.known("nobody/knows-it") is None


def test_70b_figures() -> None:
    checkpoint = Checkpoint.known("meta-llama/Llama-2-70b-hf")
    assert checkpoint is not None
    assert sum(t.nbytes for t in checkpoint.tensors.values()) == 137_953_296_384
    layer = sum(t.nbytes for n, t in checkpoint.tensors.items() if n.startswith("model.layers.7."))
    assert round(layer / 2**30, 2) == 1.59
    assert checkpoint.dtype() == "float16"
    assert checkpoint.dtype("bfloat16") == "bfloat16"


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gemma3_text", "gpt_neox", "mixtral", "gpt2"])
def test_read_is_what_transformers_saved(kind: str, tmp_path: Path) -> None:
    path = make_model(tmp_path / kind, kind)
    checkpoint = Checkpoint.read(path)
    model = AutoModelForCausalLM.from_pretrained(path)
    assert checkpoint.parameters == sum(p.numel() for p in model.parameters())
    assert checkpoint.dtype() == "float32"
    assert checkpoint.note is None


def test_read_shards_and_headers_alike(tmp_path: Path) -> None:
    whole = Checkpoint.read(make_model(tmp_path / "whole", "llama"))
    path = sharded(tmp_path / "shards")
    checkpoint = Checkpoint.read(path)
    assert len({tensor.file for tensor in checkpoint.tensors.values()}) > 1
    assert checkpoint.shapes == whole.shapes
    headers = {file.name: header_of(file)[0] for file in path.glob("*.safetensors")}
    remote = Checkpoint.from_headers(checkpoint.config, headers)
    assert remote.tensors == dict(checkpoint.tensors)


def test_buffers_and_a_head_that_is_the_embedding_are_no_parameters(tmp_path: Path) -> None:
    path = make_model(tmp_path / "model", "llama", tie_word_embeddings=True)
    before = Checkpoint.read(path).parameters
    file = path / "model.safetensors"
    add_tensor(file, "model.layers.0.self_attn.rotary_emb.inv_freq", [8])
    add_tensor(file, "lm_head.weight", [400, 64])
    assert Checkpoint.read(path).parameters == before


def test_plan_modules_import_no_torch() -> None:
    code = (
        "import sys\n"
        "from launcher import strategies\n"
        "from launcher.plan.checkpoint import Checkpoint\n"
        "from launcher.plan.machines import resolve_machines\n"
        "Checkpoint.known('meta-llama/Llama-2-70b-hf').shapes\n"
        "[strategies.get(name) for name in strategies.names()]\n"
        "print([m for m in ('torch', 'transformers', 'accelerate') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
