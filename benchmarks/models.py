"""Llamas of a few sizes with random weights: speed does not depend on what they say."""

from __future__ import annotations

import random
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

SIZES: dict[str, dict[str, Any]] = {
    "88m": {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "vocab_size": 16000,
        "tie_word_embeddings": True,
    },
    "100m": {  # of thin layers, which two stages can share evenly beside the head
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 26,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 16000,
        "tie_word_embeddings": True,
    },
    "93m": {  # the same with heads that two ranks can halve
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 30,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 16000,
        "tie_word_embeddings": True,
    },
    "25m": {
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "vocab_size": 16000,
        "tie_word_embeddings": True,
    },
    "400m": {  # of wide layers, and a head of its own
        "hidden_size": 1536,
        "intermediate_size": 4096,
        "num_hidden_layers": 14,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "vocab_size": 16000,
        "tie_word_embeddings": False,
    },
    "1.1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
        "tie_word_embeddings": False,
    },
}
DTYPES = dict.fromkeys(SIZES, torch.float32) | {"1.1b": torch.bfloat16}


def build(size: str) -> LlamaForCausalLM:
    """The llama of that size, in its dtype, with no token that ends a text."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **SIZES[size],
        max_position_embeddings=2048,
        attn_implementation="sdpa",
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
        dtype=DTYPES[size],
    )
    model = LlamaForCausalLM._from_config(config, dtype=DTYPES[size])
    model.generation_config.eos_token_id = None
    return model.eval()


def mixed_rows(rows: int, vocabulary: int, seed: int = 0) -> list[tuple[list[int], int]]:
    """Prompts of 16 to 256 tokens with 4 to 96 new tokens each, both evenly spread."""
    draw = random.Random(seed)
    return [
        ([draw.randrange(1, vocabulary) for _ in range(draw.randint(16, 256))], draw.randint(4, 96))
        for _ in range(rows)
    ]
