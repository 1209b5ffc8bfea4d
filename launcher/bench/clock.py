"""How things are timed here: again and again, and the mean counts, since a run is as long as all its steps together."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

ENOUGH_S = 0.1
FEWEST, MOST = 5, 50


def seconds(action: Callable[[], object], enough_s: float = ENOUGH_S) -> float:
    """Mean duration of ``action``; what it queued on a GPU is waited for."""
    once(action)
    found: list[float] = []
    while len(found) < FEWEST or (sum(found) < enough_s and len(found) < MOST):
        found.append(once(action))
    return statistics.fmean(found)


def once(action: Callable[[], object]) -> float:
    """Duration of one ``action``."""
    began = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began
