"""Matrix products and memory: what a device does per second."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import nn

from launcher.bench.clock import seconds
from launcher.model.packed import pack_linears
from launcher.model.turned import turn_linears

ROWS = (1, 4, 16, 32, 64, 256)
WIDE, DEEP = 2048, 1024
WORKING_SET = {"cpu": 128 << 20, "cuda": 1 << 30}  # more than caches hold
COPIED = {"cpu": 128 << 20, "cuda": 1 << 30}


def matmul_rates(device: torch.device, dtype: torch.dtype, packed: bool = True) -> dict[int, float]:
    """Floating point operations per second by rows, of layers whose weights come from memory as in a real step.
    On a CPU they are ``packed`` there, or lie as in a checkpoint and are computed with as what is streamed."""
    count = WORKING_SET[device.type] // (WIDE * DEEP * dtype.itemsize)
    turn = layers_in_turn(count, device, dtype, packed)
    found = {}
    with torch.inference_mode():
        for rows in ROWS:
            inputs = torch.randn(rows, DEEP, device=device).to(dtype)
            each = max(1, count // 4)

            def some(inputs: torch.Tensor = inputs, each: int = each) -> None:
                for _ in range(each):
                    next(turn)(inputs)

            found[rows] = 2 * rows * WIDE * DEEP * each / seconds(some)
    return found


def layers_in_turn(
    count: int, device: torch.device, dtype: torch.dtype, packed: bool = True
) -> Iterator[nn.Module]:
    """Linear layers, (DEEP) to (WIDE), again and again, on a CPU ``packed`` or as in a checkpoint."""
    layers = nn.ModuleList(
        nn.Linear(DEEP, WIDE, bias=False, device=device, dtype=dtype) for _ in range(count)
    )
    if device.type == "cpu":
        (pack_linears if packed else turn_linears)(layers)
    return itertools.cycle(layers)


def memory_rate(device: torch.device) -> float:
    """Bytes per second that are read or written while a tensor is copied."""
    source = torch.ones(COPIED[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source))
