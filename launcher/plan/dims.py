"""The figures of a model that memory and compute follow from, read from its config.json. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]

# The names that other architectures give to the same figure (GPT-2, Bloom, MPT, Falcon ...).
ALIASES = {
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "hidden_size": ("n_embd", "d_model", "dim"),
    "num_attention_heads": ("n_head", "n_heads"),
    "num_key_value_heads": ("num_kv_heads", "n_head_kv"),
    "intermediate_size": ("n_inner", "ffn_dim", "ffn_hidden_size"),
    "max_position_embeddings": ("n_positions", "max_seq_len", "seq_length"),
}
# What a class assumes where its config is silent; for all others grouped heads are off and a head
# has hidden / heads dimensions.
CLASS_DEFAULTS: dict[str, dict[str, int]] = {
    "mistral": {"num_key_value_heads": 8},
    "mixtral": {"num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen2": {"num_key_value_heads": 32},
    "qwen3": {"num_key_value_heads": 32, "head_dim": 128},
    "gemma2": {"num_key_value_heads": 4, "head_dim": 256},
    "gemma3_text": {"num_key_value_heads": 4, "head_dim": 256},
}
MOST = 2**31  # of anything that a config counts; a figure above is a mistake or an attack
MOST_LAYERS = 10_000


@dataclass(frozen=True)
class Dims:
    """Counts of elements. ``heads`` 0 is a model without attention, ``context`` 0 an unknown one."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    context: int
    experts: int
    mlp_width: int  # what one token makes of its MLP: over all the experts that it visits
    cached_per_layer: int  # keys and values that one token leaves in one layer's cache

    @classmethod
    def of(cls, config: Config) -> Dims:
        """Raises ValueError naming the key that is missing or makes no sense."""
        text = text_config(config)
        text = CLASS_DEFAULTS.get(str(text.get("model_type")), {}) | {
            key: value for key, value in text.items() if value is not None
        }
        hidden = figure(text, "hidden_size")
        heads = figure(text, "num_attention_heads", default=0)
        kv_heads = _kv_heads(text, heads)
        head_dim = figure(text, "head_dim", default=hidden // heads if heads else 0)
        intermediate = figure(text, "intermediate_size", default=4 * hidden)
        return cls(
            layers=figure(text, "num_hidden_layers", at_most=MOST_LAYERS),
            hidden=hidden,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            intermediate=intermediate,
            vocab=figure(text, "vocab_size"),
            context=figure(text, "max_position_embeddings", default=0),
            experts=figure(text, "num_local_experts", default=0),
            mlp_width=_mlp_width(text, intermediate),
            cached_per_layer=_cached(text, 2 * kv_heads * head_dim),
        )


def text_config(config: Config) -> Config:
    """The language model's part of a config; multimodal ones keep it in ``text_config``."""
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config


def figure(config: Config, name: str, default: int | None = None, at_most: int = MOST) -> int:
    """The count that a config gives under ``name`` or an alias, at least 1 where there is no default.

    Raises ValueError if there is none or it is out of bounds.
    """
    for key in (name, *ALIASES.get(name, ())):
        value = config.get(key)
        if value is None:
            continue
        least = 1 if default is None else 0
        if isinstance(value, list) and value:  # one per layer: the largest decides
            value = max(value, key=lambda item: item if type(item) is int else -1)
        if type(value) is not int or not least <= value <= at_most:
            raise ValueError(f"{key} is {value!r}, not a count from {least} to {at_most:,}")
        return value
    if default is None:
        raise ValueError(f"{name} is missing")
    return default


def _kv_heads(text: Config, heads: int) -> int:
    if text.get("multi_query") and not text.get("new_decoder_architecture"):
        return 1  # Falcon 7B and GPT-BigCode: one key and one value for all heads
    return figure(text, "num_key_value_heads", default=heads)


def _mlp_width(text: Config, intermediate: int) -> int:
    visited = figure(text, "num_experts_per_tok", default=1)
    return max(intermediate, visited * figure(text, "moe_intermediate_size", default=intermediate))


def _cached(text: Config, grouped: int) -> int:
    if not text.get("kv_lora_rank"):
        return grouped
    # Latent attention (DeepSeek) is cached compressed: one latent and one rotary key for all heads.
    return figure(text, "kv_lora_rank") + figure(text, "qk_rope_head_dim")
