"""Predicted memory against what the real runner takes: weights, caches, and the most that a step holds beside them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import random_model, small_config
from torch.profiler import ProfilerActivity, profile

from launcher.bench.layers import even_step
from launcher.model.packed import PackedLinear, pack_linears
from launcher.model.runner import StageRunner
from launcher.plan.checkpoint import Checkpoint
from launcher.plan.memory import Model, shares
from launcher.plan.plan import Batch

SIZES = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "vocab_size": 2000,
    "max_position_embeddings": 512,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 32}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {**GROUPED},
    "qwen3": {**GROUPED},
    "mistral": {**GROUPED, "sliding_window": None},
    "gpt_neox": {},
    "gemma2": {**GROUPED, "query_pre_attn_scalar": 32, "tie_word_embeddings": True},
    "mixtral": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
}
BATCH = Batch(groups=1, slots=12, max_length=512, prefill_chunk=128)


def most_held(run: Any) -> int:
    """The most bytes that are allocated at once while ``run`` runs, beyond what there was before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run()
    held = most = 0
    for event in found.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


@pytest.mark.parametrize("kind", KINDS)
def test_peak_is_as_predicted(kind: str) -> None:
    torch.set_num_threads(1)
    config = small_config(kind, **(SIZES | KINDS[kind]))
    model = random_model(config)
    pack_linears(model)
    runner = StageRunner(model, BATCH)
    for first in range(0, BATCH.max_length - BATCH.prefill_chunk, BATCH.prefill_chunk):
        runner.run(even_step(BATCH.slots, first, BATCH.prefill_chunk))
    runner.run(even_step(1, 384, 127))
    cached = sum(
        tensor.nbytes
        for layer in runner.cache(0).layers
        for tensor in (layer.keys, layer.values)
        if tensor is not None
    )
    held = max(
        most_held(lambda: runner.run(even_step(BATCH.slots, 480, 1))),
        most_held(lambda: runner.run(even_step(1, 383, BATCH.prefill_chunk))),
    )
    checkpoint = Checkpoint.from_config(config.to_dict())
    attention = "eager" if kind == "gemma2" else "sdpa"
    made = Model(checkpoint.dims, checkpoint.outline(4), 4, attention)
    share = shares(made, BATCH, {"": "cpu"}, "cpu")["cpu"]
    assert share.kv == cached
    assert share.weights == weights_bytes(model, made)
    measured = share.weights + cached + held + packed_copy(made)
    assert share.peak - share.reserve == pytest.approx(measured, rel=0.05)


def weights_bytes(model: torch.nn.Module, made: Model) -> int:
    """What the parameters take, packed ones included; a tied head's copy is not one of them."""
    plain = sum(parameter.nbytes for parameter in model.parameters())
    packed = sum(
        4 * module.in_features * module.out_features
        + (0 if module.bias is None else module.bias.nbytes)
        for module in model.modules()
        if isinstance(module, PackedLinear)
    )
    return plain + packed - packed_copy(made)


def packed_copy(made: Model) -> int:
    return made.dims.vocab * made.dims.hidden * 4 if made.outline.tied else 0
