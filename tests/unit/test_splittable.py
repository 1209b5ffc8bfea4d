"""can_split: which models can be cut into stages, told without torch."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.plan.checkpoint import Checkpoint
from launcher.plan.shapes import parameters
from launcher.plan.splittable import can_split

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 3,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 10,
}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"layer_types": ["sliding_attention", "full_attention", "chunked_attention"]}, None),
        ({"layer_types": ["linear_attention", "full_attention"]}, "linear_attention"),
        ({"is_encoder_decoder": True}, "encoder"),
        ({"text_config": dict(LLAMA)}, "part of a larger one"),
        ({"num_kv_shared_layers": 2}, "keys and values of earlier ones"),
        ({"num_kv_shared_layers": 0}, None),
        ({"embedding_multiplier": 12.0}, "embedding_multiplier"),
        ({"embedding_multiplier": 1.0}, None),
    ],
)
def test_what_a_config_says(changes: dict[str, Any], reason: str | None) -> None:
    found = can_split(LLAMA | changes)
    assert found is None if reason is None else reason in str(found)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", None),
        ("transformer.wpe.weight", "transformer.wpe"),
        ("model.decoder.embed_positions.weight", "embed_positions"),
        ("model.layers.1.mamba.A_log", "mamba.A_log"),
        ("model.layers.1.linear_attn.conv1d.weight", "conv1d"),
    ],
)
def test_what_the_tensors_say(more: str, reason: str | None) -> None:
    found = can_split(LLAMA, [*parameters(LLAMA), more])
    assert found is None if reason is None else reason in str(found)


def test_layers_that_cannot_be_found() -> None:
    names = [name for name in parameters(LLAMA) if "layers.1." not in name]
    assert "layer 1" in str(can_split(LLAMA, names))
    assert "layer 0" in str(can_split(LLAMA, ["embed.weight", "head.weight"]))


def test_well_known_models_can_be_split() -> None:
    known = Checkpoint.known("meta-llama/Llama-2-70b-hf")
    assert known is not None
    assert can_split(known.config, known.tensors) is None
