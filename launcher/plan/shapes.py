"""The parameters of well-known families, from a config alone.

Names and shapes are those of the transformers classes (a test builds these on the meta device and
compares), in the order in which a class registers its modules, which placement depends on. No torch.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any

from launcher.plan.dims import Config, Dims, text_config

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Family:
    """How one ``model_type`` names its parts. ``layer`` gives a decoder layer's parameters."""

    layer_class: str
    model_class: str
    layer: Callable[[Config, Dims], Shapes]
    base: str = "model"
    embed: str = "embed_tokens"
    norm: str = "norm"
    norm_bias: bool = False
    tied: bool = False  # where the config does not say
    rotary_share: float = 1.0  # of a head, where the config does not say
    rotary_by_kind: bool = False  # each kind of layers (sliding, full) has a table of its own
    # Weigh nothing, but are part of the tree that is placed: modules between embedding and layers
    # without parameters, and the buffer of an embedding that scales its output.
    silent: tuple[str, ...] = ()
    scaled_embedding: bool = False


def family(config: Config) -> Family | None:
    """The family of a config, or None for a model that this module has no shapes for."""
    known = FAMILIES.get(str(config.get("model_type")))
    return None if "quantization_config" in config else known


def is_tied(config: Config, default: bool) -> bool:
    """Whether the output head is the embedding."""
    value = text_config(config).get("tie_word_embeddings", config.get("tie_word_embeddings"))
    return default if value is None else bool(value)


def parameters(config: Config) -> Shapes:
    """Every parameter of a causal language model of a known family; a tied head is left out.

    Raises ValueError for a family that is not known or a config that lacks a figure.
    """
    kind = family(config)
    if kind is None:
        raise ValueError(f"no shapes are known for model_type {config.get('model_type')!r}")
    dims = Dims.of(config)
    shapes: Shapes = {f"{kind.base}.{kind.embed}.weight": (dims.vocab, dims.hidden)}
    layer = kind.layer(config, dims)
    for index in range(dims.layers):
        shapes |= {f"{kind.base}.layers.{index}.{name}": shape for name, shape in layer.items()}
    shapes[f"{kind.base}.{kind.norm}.weight"] = (dims.hidden,)
    if kind.norm_bias:
        shapes[f"{kind.base}.{kind.norm}.bias"] = (dims.hidden,)
    if not is_tied(config, kind.tied):
        shapes["lm_head.weight"] = (dims.vocab, dims.hidden)
    return shapes


@functools.cache
def _known_models() -> dict[str, dict[str, Any]]:
    table = resources.files("launcher.plan") / "known_models.json"
    models: dict[str, dict[str, Any]] = json.loads(table.read_text())["models"]
    return models


def known_config(repo_id: str) -> dict[str, Any] | None:
    """The config of a well-known hub model from the built-in table, or None."""
    entry = _known_models().get(repo_id)
    if entry is None:
        return None
    return known_config(entry["as"]) if "as" in entry else entry


def _attention(dims: Dims, qkv_bias: bool = False, out_bias: bool = False) -> Shapes:
    wide, narrow = dims.heads * dims.head_dim, dims.kv_heads * dims.head_dim
    shapes: Shapes = {}
    for name, rows in (("q_proj", wide), ("k_proj", narrow), ("v_proj", narrow)):
        shapes[f"self_attn.{name}.weight"] = (rows, dims.hidden)
        if qkv_bias:
            shapes[f"self_attn.{name}.bias"] = (rows,)
    shapes["self_attn.o_proj.weight"] = (dims.hidden, wide)
    if out_bias:
        shapes["self_attn.o_proj.bias"] = (dims.hidden,)
    return shapes


def _gated_mlp(dims: Dims, bias: bool = False) -> Shapes:
    shapes: Shapes = {}
    for name, rows, columns in (
        ("gate_proj", dims.intermediate, dims.hidden),
        ("up_proj", dims.intermediate, dims.hidden),
        ("down_proj", dims.hidden, dims.intermediate),
    ):
        shapes[f"mlp.{name}.weight"] = (rows, columns)
        if bias:
            shapes[f"mlp.{name}.bias"] = (rows,)
    return shapes


def _norms(dims: Dims, *names: str) -> Shapes:
    return {f"{name}.weight": (dims.hidden,) for name in names}


def _head_norms(dims: Dims) -> Shapes:
    return {f"self_attn.{name}_norm.weight": (dims.head_dim,) for name in ("q", "k")}


_TWO_NORMS = ("input_layernorm", "post_attention_layernorm")


def _llama(config: Config, dims: Dims) -> Shapes:
    bias = bool(config.get("attention_bias", False))
    mlp = _gated_mlp(dims, bool(config.get("mlp_bias", False)))
    return _attention(dims, bias, bias) | mlp | _norms(dims, *_TWO_NORMS)


def _qwen2(config: Config, dims: Dims) -> Shapes:
    return _attention(dims, qkv_bias=True) | _gated_mlp(dims) | _norms(dims, *_TWO_NORMS)


def _qwen3(config: Config, dims: Dims) -> Shapes:
    bias = bool(config.get("attention_bias", False))
    mlp = _gated_mlp(dims)
    return _attention(dims, bias, bias) | _head_norms(dims) | mlp | _norms(dims, *_TWO_NORMS)


def _mistral(config: Config, dims: Dims) -> Shapes:
    return _attention(dims) | _gated_mlp(dims) | _norms(dims, *_TWO_NORMS)


def _mixtral(config: Config, dims: Dims) -> Shapes:
    moe: Shapes = {
        "mlp.gate.weight": (dims.experts, dims.hidden),
        "mlp.experts.gate_up_proj": (dims.experts, 2 * dims.intermediate, dims.hidden),
        "mlp.experts.down_proj": (dims.experts, dims.hidden, dims.intermediate),
    }
    return _attention(dims) | moe | _norms(dims, *_TWO_NORMS)


def _gemma2(config: Config, dims: Dims) -> Shapes:
    bias = bool(config.get("attention_bias", False))
    around_mlp = ("pre_feedforward_layernorm", "post_feedforward_layernorm")
    norms = _norms(dims, *_TWO_NORMS, *around_mlp)
    return _attention(dims, bias, bias) | _gated_mlp(dims) | norms


def _gemma3(config: Config, dims: Dims) -> Shapes:
    return _gemma2(config, dims) | _head_norms(dims)


def _gpt_neox(config: Config, dims: Dims) -> Shapes:
    attention_bias = bool(config.get("attention_bias", True))
    shapes: Shapes = {}
    for name, rows, columns, bias in (
        ("input_layernorm", dims.hidden, 0, True),
        ("post_attention_layernorm", dims.hidden, 0, True),
        ("attention.query_key_value", 3 * dims.hidden, dims.hidden, attention_bias),
        ("attention.dense", dims.hidden, dims.hidden, attention_bias),
        ("mlp.dense_h_to_4h", dims.intermediate, dims.hidden, True),
        ("mlp.dense_4h_to_h", dims.hidden, dims.intermediate, True),
    ):
        shapes[f"{name}.weight"] = (rows, columns) if columns else (rows,)
        if bias:
            shapes[f"{name}.bias"] = (rows,)
    return shapes


def _phi3(config: Config, dims: Dims) -> Shapes:
    wide, narrow = dims.heads * dims.head_dim, dims.kv_heads * dims.head_dim
    return {
        "self_attn.o_proj.weight": (dims.hidden, wide),
        "self_attn.qkv_proj.weight": (wide + 2 * narrow, dims.hidden),
        "mlp.gate_up_proj.weight": (2 * dims.intermediate, dims.hidden),
        "mlp.down_proj.weight": (dims.hidden, dims.intermediate),
        **_norms(dims, *_TWO_NORMS),
    }


FAMILIES = {
    "llama": Family("LlamaDecoderLayer", "LlamaModel", _llama),
    "qwen2": Family("Qwen2DecoderLayer", "Qwen2Model", _qwen2),
    "qwen3": Family("Qwen3DecoderLayer", "Qwen3Model", _qwen3),
    "mistral": Family("MistralDecoderLayer", "MistralModel", _mistral),
    "mixtral": Family("MixtralDecoderLayer", "MixtralModel", _mixtral),
    "gemma2": Family(
        "Gemma2DecoderLayer", "Gemma2Model", _gemma2, tied=True, scaled_embedding=True
    ),
    "gemma3_text": Family(
        "Gemma3DecoderLayer",
        "Gemma3TextModel",
        _gemma3,
        tied=True,
        scaled_embedding=True,
        rotary_by_kind=True,
    ),
    "gpt_neox": Family(
        "GPTNeoXLayer",
        "GPTNeoXModel",
        _gpt_neox,
        base="gpt_neox",
        embed="embed_in",
        norm="final_layer_norm",
        norm_bias=True,
        rotary_share=0.25,
        silent=("emb_dropout",),
    ),
    "phi3": Family("Phi3DecoderLayer", "Phi3Model", _phi3),
}
