"""What runners hold in memory, counted: small models of several kinds, the steps that take most, and torch's own count
of what is allocated."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from models import small_config
from torch.profiler import ProfilerActivity, profile

from launcher.bench.layers import even_step
from launcher.model.packed import PackedLinear
from launcher.model.runner import StageRunner
from launcher.model.step import Step
from launcher.plan.checkpoint import Checkpoint
from launcher.plan.memory import Model
from launcher.plan.plan import Batch
from launcher.plan.shards import Shards

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
BATCH = Batch(groups=1, slots=6, max_length=512, prefill_chunk=128)

# One row until the caches have grown to their full length; then what may take most.
FILLING = [*(even_step(1, first, 128) for first in range(0, 384, 128)), even_step(1, 384, 127)]
LARGEST = [
    even_step(6, 480, 1),
    even_step(1, 383, BATCH.prefill_chunk),
    replace(  # the end of a long prompt beside a short one: together they attend to most
        even_step(2, 0, 126), starts=torch.tensor([510, 0]), counts=torch.tensor([2, 126])
    ),
]


def most_held(run: Callable[[Step], object], step: Step) -> int:
    """The most bytes that are allocated at once while ``run`` does ``step``, beyond what there was before."""
    gc.collect()  # what earlier tests left must not be freed meanwhile: it would count as memory given back
    gc.disable()
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
            run(step)
    finally:
        gc.enable()
    held = most = 0
    for event in found.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def fill(runner: StageRunner, group: int = 0) -> None:
    for step in FILLING:
        runner.run(replace(step, group=group), given(runner, step))


def given(runner: StageRunner, step: Step) -> torch.Tensor | None:
    """What the stage before would send."""
    return None if runner._first else torch.zeros(int(step.counts.sum()), SIZES["hidden_size"])


def config_of(kind: str) -> Any:
    return small_config(kind, **(SIZES | KINDS[kind]))


def model_of(kind: str, shards: int = 1) -> Model:
    """As a plan has it, of every tensor a rank's shard."""
    checkpoint = Checkpoint.from_config(config_of(kind).to_dict())
    part = Shards.of(checkpoint.config, checkpoint.dims, shards)
    outline = checkpoint.outline(4, part.part)
    attention = "eager" if kind == "gemma2" else "sdpa"
    return Model(part.dims(checkpoint.dims), outline, 4, attention)


def cached(runner: StageRunner) -> int:
    """Bytes of the caches of all groups."""
    return sum(
        tensor.nbytes
        for cache in runner._caches
        for layer in cache._layers
        for tensor in (layer.keys, layer.values)
        if tensor is not None
    )


def weights_bytes(models: Iterable[torch.nn.Module]) -> int:
    """What the parameters take, packed ones included; a packed head that is tied is a copy."""
    modules = {id(module): module for model in models for module in model.modules()}.values()
    plain = {
        id(parameter): parameter.nbytes
        for module in modules
        for parameter in module.parameters(recurse=False)
        if not parameter.is_meta
    }
    packed = sum(
        4 * module.in_features * module.out_features
        + (0 if module.bias is None else module.bias.nbytes)
        for module in modules
        if isinstance(module, PackedLinear)
    )
    return sum(plain.values()) + packed
