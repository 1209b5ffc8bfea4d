"""What the engine's own Python takes per step, with a model that answers at once."""

from __future__ import annotations

import time
from collections import deque

import torch

from launcher.engine.engine import Engine
from launcher.engine.text import Text
from launcher.model.step import Step
from launcher.plan.plan import Batch
from launcher.records import Request, Sampling

ROWS, SLOTS, PROMPT, NEW = 32, 16, 32, 64
READ = 64 << 20  # bytes: more than most caches hold


class _AtOnce:
    """A StepModel without a model: every token is 0. ``spent``: seconds in which it does what a model does to the
    engine's Python, which is read memory until nothing of that is in the processor's caches."""

    depth = 1

    def __init__(self) -> None:
        self.spent = 0.0
        self._rows: deque[int] = deque()
        self._weights = torch.zeros(READ // 8, dtype=torch.int64)

    def launch(self, step: Step) -> None:
        self._rows.append(len(step.slots))

    def collect(self) -> torch.Tensor:
        began = time.perf_counter()
        self._weights.sum()
        self.spent += time.perf_counter() - began
        return torch.zeros(self._rows.popleft(), dtype=torch.int64)

    def figures(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        """There is nothing to give up."""


class _NoText(Text):
    """Every prompt has PROMPT tokens, and no token ends a text."""

    def __init__(self) -> None:
        self.context, self.eos = PROMPT + NEW, frozenset()

    def encode(self, request: Request) -> list[int]:
        return [0] * PROMPT

    def decode(self, tokens: list[int]) -> str:
        return ""


def engine_step_s() -> float:
    """Seconds per step of a usual batch."""
    requests = iter(
        Request(row, str(row), Sampling(max_new_tokens=NEW), "prompt") for row in range(ROWS)
    )
    batch = Batch(groups=1, slots=SLOTS, max_length=PROMPT + NEW, prefill_chunk=128)
    model = _AtOnce()
    engine = Engine(model, _NoText(), batch)
    began = time.perf_counter()
    engine.run(lambda: next(requests, None), lambda record: None)
    return (time.perf_counter() - began - model.spent) / engine.counters.steps
