"""What a decoder layer takes beside its matrix products, by running small models through the real runner."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from launcher.bench.clock import seconds
from launcher.model.packed import PackedLinear, pack_linears
from launcher.model.runner import StageRunner
from launcher.model.step import Step
from launcher.plan.measured import element_s
from launcher.plan.plan import Batch

LONGEST = 1024
PROMPT = 256  # tokens
# Rows, tokens of each that are cached, tokens that each is fed.
STEPS = (
    *((rows, cached, 1) for rows in (1, 8, 32) for cached in (48, 480)),
    *((1, cached, PROMPT) for cached in (0, 480)),
)
PROBES: tuple[dict[str, int], ...] = (
    {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
    },
    # More weights than caches hold, as in a real model.
    {
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_attention_heads": 8,
        "num_hidden_layers": 16,
    },
)


@dataclass(frozen=True)
class Beside:
    """Fields of Costs."""

    pass_s: float
    layer_s: float
    row_s: float
    width_s: float
    decode_s: float
    prefill_s: float


def beside_products(device: torch.device, dtype: torch.dtype, matmul: dict[int, float]) -> Beside:
    """Fitted to steps of few and many rows, short and long ones, narrow and wide models. What their products take
    more than at the rates of ``matmul``, which large matrices reach, is in it: calling them, above all."""
    features, measured = [], []
    for probe in PROBES:
        model = _model(probe, device, dtype)
        elements = sum(linear.in_features * linear.out_features for linear in _linears(model))
        layers = probe["num_hidden_layers"]
        position = _position_bytes(model)
        for rows, cached, fed in STEPS:
            tokens, seen = rows * fed, rows * fed * (cached + (fed + 1) / 2)
            took = _step_s(model, rows, cached, fed) - elements * element_s(matmul, tokens)
            width = probe["hidden_size"] + probe["intermediate_size"]
            decoding = fed == 1
            attending = [seen * position, 0.0] if decoding else [0.0, seen * probe["hidden_size"]]
            features.append([1 / layers, 1.0, rows * decoding, tokens * width, *attending])
            measured.append(max(took, 1e-6) / layers)
    return Beside(*non_negative_fit(features, measured))


def non_negative_fit(features: list[list[float]], measured: list[float]) -> list[float]:
    """Factors of the features, none below 0, with least relative error."""
    weights = 1 / np.array(measured)
    matrix = np.array(features) * weights[:, None]
    used = list(range(matrix.shape[1]))
    while used:
        found = np.linalg.lstsq(matrix[:, used], np.ones(len(measured)), rcond=None)[0]
        if (found >= 0).all():
            break
        used.remove(used[int(found.argmin())])
    factors = [0.0] * matrix.shape[1]
    for place, value in zip(used, found.tolist() if used else [], strict=True):
        factors[place] = value
    return factors


def _model(
    probe: dict[str, int], device: torch.device, dtype: torch.dtype, packed: bool = True
) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **probe,  # type: ignore[arg-type]
        num_key_value_heads=4,
        vocab_size=64,
        max_position_embeddings=LONGEST,
    )
    model = LlamaForCausalLM._from_config(config, dtype=dtype).eval().to(device)
    if packed and device.type == "cpu":
        pack_linears(model)
    return model


def tiny_model() -> Any:
    """Hardly more than its code."""
    return _model(PROBES[0], torch.device("cpu"), torch.float32, packed=False)


def _step_s(model: Any, rows: int, cached: int, fed: int) -> float:
    batch = Batch(groups=1, slots=rows, max_length=LONGEST, prefill_chunk=LONGEST)
    runner = StageRunner(model, batch)
    if cached:
        runner.run(even_step(rows, 0, cached * 3 // 2))
    step = even_step(rows, cached, fed)
    if rows > 1:  # as far apart as in a run
        step = replace(step, starts=torch.linspace(cached / 2, cached * 3 / 2, rows).long())
    return seconds(lambda: runner.run(step))


def even_step(rows: int, start: int, count: int) -> Step:
    """``count`` tokens of each of ``rows`` rows that hold ``start`` tokens."""
    return Step(
        group=0,
        kind="decode" if count == 1 else "prefill",
        slots=torch.arange(rows),
        tokens=torch.ones(rows, count, dtype=torch.int64),
        starts=torch.full((rows,), start),
        counts=torch.full((rows,), count),
        sampling=None,
    )


def _position_bytes(model: Any) -> int:
    """Keys and values of one position in one layer."""
    config = model.config
    elements: int = 2 * config.num_key_value_heads * config.head_dim
    return elements * model.dtype.itemsize


def _linears(model: Any) -> list[nn.Linear | PackedLinear]:
    """The layers' own."""
    return [m for m in model.model.modules() if isinstance(m, nn.Linear | PackedLinear)]
