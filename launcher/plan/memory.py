"""What a replica takes on each of its devices: weights, KV cache, activations, and what the framework keeps.

The figures follow what the engine does: a step feeds one token of every slot that decodes, and of prompts what
these leave of ``prefill_chunk`` tokens. No torch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata

from launcher.plan.dims import Dims
from launcher.plan.outline import Outline
from launcher.plan.placement import Device, find_device
from launcher.plan.plan import Batch
from launcher.plan.sizes import GIB

# CUDA: context, library workspaces and what the caching allocator can't use between its blocks.
# CPU: the interpreter, torch and transformers themselves.
RESERVE = {"cuda": 3 * GIB // 2, "cpu": 3 * GIB // 4}
SAMPLING_BYTES = 40  # per logit: scores, keys of the noise, sorted scores and their tokens
SPILLED = ("cpu", "disk")
BLOCK = 256  # positions that a cache grows by
PACK = 512  # tokens of rows that attend end to end, of models that can't attend apart


@dataclass(frozen=True)
class Model:
    """What memory follows from: ``width`` bytes per element, ``attention`` as the spec has it, where steps do so."""

    dims: Dims
    outline: Outline
    width: int
    attention: str

    @property
    def tied_bytes(self) -> int:
        """Of the embedding where the head is tied to it: on a CPU the head has a copy (model/packed.py)."""
        sizes = {leaf.name: leaf.weights for leaf in self.outline.root.leaves()}
        return sum(sizes[holder] for holder, *_ in self.outline.tied)

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token in all layers; a sliding window is counted as a full one."""
        return self.dims.layers * self.kv_bytes_per_layer

    @property
    def kv_bytes_per_layer(self) -> int:
        """Keys and values of one token in one layer."""
        return self.dims.cached_per_layer * self.width


@dataclass(frozen=True)
class Share:
    """One device's part of a replica; bytes. ``layers`` are the numbers of its decoder layers."""

    device: Device
    layers: tuple[int, ...]
    weights: int
    kv: int
    activations: int
    reserve: int

    @property
    def peak(self) -> int:
        return self.weights + self.kv + self.activations + self.reserve


def shares(
    model: Model, batch: Batch, device_map: Mapping[str, Device], kind: str
) -> dict[Device, Share]:
    """What each device of ``device_map`` takes; ``kind`` is cuda or cpu. In the order of the layers.

    Spilled layers are computed on the first GPU (on the CPU if there is none): their weights come
    there one layer at a time, and their cache stays there.
    """
    found: dict[Device, list[int]] = {}
    weights: dict[Device, int] = {}
    for leaf in model.outline.root.leaves():
        device = _device(device_map, leaf.name)
        weights[device] = weights.get(device, 0) + leaf.weights
        found.setdefault(device, []).extend([] if leaf.layer is None else [leaf.layer])
    main = main_device(list(found))
    spilled = {device for device in found if device in SPILLED and device != main}
    extra = sum(len(found[device]) for device in spilled)
    moving = max(
        (m.weights for m in model.outline.root.leaves() if _device(device_map, m.name) in spilled),
        default=0,
    )
    slots = batch.groups * batch.slots * batch.max_length
    head_device = _device(device_map, model.outline.head)
    result = {}
    for device, layers in found.items():
        computes = device not in spilled
        cached = len(layers) + (extra if device == main else 0)
        busy = activation_bytes(model, batch, has_head=device == head_device) if computes else 0
        if kind == "cpu" and device == head_device and not spilled:
            busy += model.tied_bytes
        result[device] = Share(
            device=device,
            layers=tuple(layers),
            weights=weights[device],
            kv=slots * cached * model.kv_bytes_per_layer if computes else 0,
            activations=busy + (moving if device == main else 0),
            reserve=RESERVE["cpu" if device == "cpu" else kind] if device != "disk" else 0,
        )
    return result


def main_device(devices: list[Device]) -> Device:
    """Where spilled layers are computed: the first GPU, or the CPU."""
    return min((d for d in devices if isinstance(d, int)), default="cpu")


def activation_bytes(model: Model, batch: Batch, has_head: bool) -> int:
    """The most that a step takes beside weights and cache, on a device with at least one layer."""
    chunk, length = batch.prefill_chunk, batch.max_length
    if model.attention == "eager":  # rows end to end attend to all of them (StageRunner)
        queries = min(chunk, PACK)
        prefill = _step_bytes(model, chunk, queries, length + queries)
    else:
        prefill = _step_bytes(model, chunk, min(chunk, length), length)
    # Every slot attends to as many positions as the longest row holds.
    decode = _step_bytes(model, batch.slots, 1, batch.slots * length)
    logits = batch.slots * model.dims.vocab * (model.width + SAMPLING_BYTES) if has_head else 0
    return max(prefill, decode, logits)


def _step_bytes(model: Model, tokens: int, queries: int, keys: int) -> int:
    """``queries`` tokens attend together; ``keys`` counts the positions attended to, over all rows.

    A hidden state is held by the residual, its norm (in float32 too) and the sum; an MLP holds gate,
    up and their product; the mask is there from the first layer to the last. Flash attention makes none, and
    reads keys and values as they are stored.
    """
    flash = model.attention == "flash_attention_2"
    dims, width, mask = model.dims, model.width, 0 if flash else queries * keys
    hidden = tokens * dims.hidden * (3 * width + 4) + mask * width
    mlp = 3 * tokens * dims.mlp_width * width
    attention = tokens * (2 * dims.heads + 2 * dims.kv_heads) * dims.head_dim * width
    if model.attention == "eager":
        attention += mask * dims.heads * (width + 4)
        attention += keys * model.kv_bytes_per_layer if queries > 1 else 0
    if not flash and (queries > 1 or model.attention == "eager" or not sdpa_packs_heads()):
        # Keys and values repeated for every head; of a single head they are views, and copied when multiplied.
        repeated = 2 if dims.kv_heads > 1 else 1
        attention += repeated * keys * dims.heads * dims.head_dim * width
    return hidden + max(mlp, attention)


@functools.cache
def sdpa_packs_heads() -> bool:
    """Whether decoding reads grouped heads in place: transformers before 5.23 repeats keys and values for
    every query head when there is a mask."""
    numbers = metadata.version("transformers").split(".")[:2]
    return [int(number) for number in numbers] >= [5, 23]


def most(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The largest number in [low, high] that fits, where all below it do too; 0 if not even ``low`` does."""
    if not fits(low):
        return 0
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _device(device_map: Mapping[str, Device], name: str) -> Device:
    device = find_device(device_map, name)
    assert device is not None, f"the device map leaves out {name}"
    return device
