"""can_split: which models can be cut into stages, told without torch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from launcher.errors import PreflightError
from launcher.model import stage
from launcher.plan import splittable
from launcher.plan.checkpoint import Checkpoint
from launcher.plan.dims import Dims
from launcher.plan.shapes import parameters
from launcher.plan.splittable import BY_TYPE, can_split

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
        ("model.layers.1.temporal_block.rg_lru.recurrent_param", "rg_lru"),
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


SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "max_position_embeddings": 64,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "sliding_window": 9,
    "rotary_dim": 16,
    **dict.fromkeys(("n_embd", "d_model"), 64),
    **dict.fromkeys(("n_layer", "n_layers"), 4),
    **dict.fromkeys(("n_head", "n_heads"), 4),
    **dict.fromkeys(("ffn_dim", "ffn_hidden_size"), 96),
}


def small(kind: str) -> tuple[Any, list[str]] | None:
    """A config of four small layers and its tensors' names; None of a type that takes more to make one."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        plain = AutoConfig.for_model(kind)
        names = {*plain.to_dict(), *plain.attribute_map}
        config = AutoConfig.for_model(kind, **{k: v for k, v in SMALL.items() if k in names})
        with torch.device("meta"):
            held = AutoModelForCausalLM.from_config(config).state_dict()
        weights = sum(tensor.numel() for tensor in held.values())
        return (config, list(held)) if weights < 2e7 and _layers(config) == 4 else None
    except Exception:  # noqa: BLE001 - each type fails in its own way
        return None


def _layers(config: Any) -> int:
    return Dims.of(config.to_dict()).layers


def refused(config: Any, *parts: tuple[int, int]) -> bool:
    """Whether stages of such a model with these layers can't be made."""
    for first, last in parts:
        part = stage._Part(first, last, 4)
        try:
            made: Any = stage._stage_class(stage._class_of(config), part, None)
            stage._renumber(made._from_config(copy.deepcopy(config)), part)
        except PreflightError:
            return True
    return False


@pytest.mark.parametrize("kind", [*BY_TYPE, "granite_swa"])
def test_what_is_known_of_a_type_is_true(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one with another list of modules, a stage with as many layers as that list has, too."""
    made = small(kind)
    assert made is not None
    assert bool(can_split(made[0].to_dict())) == (kind in BY_TYPE)
    monkeypatch.setattr(splittable, "BY_TYPE", {})
    assert refused(made[0], (1, 2), (3, 3)) == (kind in BY_TYPE)


@pytest.mark.slow
def test_every_type_that_plan_lets_pass_has_stages() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    made = filter(None, map(small, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
    passed = [config for config, names in made if not can_split(config.to_dict(), names)]
    assert not [config.model_type for config in passed if refused(config, (3, 3))]
    assert len(passed) > 60
