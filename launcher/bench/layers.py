"""What a decoder layer takes beside its matrix products, by running small models through the real runner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from launcher.bench.clock import seconds
from launcher.model.packed import PackedLinear, pack_linears
from launcher.model.runner import StageRunner
from launcher.model.step import Step
from launcher.plan.plan import Batch

LAYERS = 4
LONGEST = 1024
PROMPT = 128  # tokens
# Rows, tokens of each that are cached, tokens that each is fed.
STEPS = (
    *((rows, cached, 1) for rows in (1, 8, 32) for cached in (48, 480)),
    *((1, cached, PROMPT) for cached in (0, 480)),
)
PROBES: tuple[dict[str, int], ...] = (
    {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4},
    {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8},
)


@dataclass(frozen=True)
class Beside:
    """Fields of Costs."""

    layer_s: float
    width_s: float
    decode_s: float
    prefill_s: float


def beside_products(device: torch.device, dtype: torch.dtype) -> Beside:
    """Fitted to steps of few and many rows, short and long ones, narrow and wide models."""
    features, measured = [], []
    for probe in PROBES:
        model = _model(probe, device, dtype)
        for rows, cached, fed in STEPS:
            took = _step_s(model, rows, cached, fed) - _products_s(model, rows * fed, device, dtype)
            tokens, queries = rows * fed, rows * fed * probe["hidden_size"]
            seen = queries * (cached + (fed + 1) / 2)
            width = probe["hidden_size"] + probe["intermediate_size"]
            features.append([1.0, tokens * width, seen * (fed == 1), seen * (fed > 1)])
            measured.append(max(took, 1e-6) / LAYERS)
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
        num_hidden_layers=LAYERS,
        num_key_value_heads=2,
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
        runner.run(even_step(rows, 0, cached))
    step = even_step(rows, cached, fed)
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


def _products_s(model: Any, tokens: int, device: torch.device, dtype: torch.dtype) -> float:
    """Of the layers' own matrices alone."""
    linears = [m for m in model.model.modules() if isinstance(m, nn.Linear | PackedLinear)]
    inputs = {
        width: torch.randn(tokens, width, device=device).to(dtype)
        for width in {linear.in_features for linear in linears}
    }

    def run() -> None:
        for linear in linears:
            linear(inputs[linear.in_features])

    with torch.inference_mode():
        return seconds(run)
