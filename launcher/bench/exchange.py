"""Links: messages from one rank to another, and sums over ranks."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
import torch.distributed as dist

from launcher.bench.clock import once
from launcher.bench.products import DEEP, layers_in_turn
from launcher.model.gang import Gang
from launcher.model.group import TensorGroup
from launcher.plan.measured import Line

SMALL, LARGE = 1 << 12, 1 << 23  # bytes
ROUNDS = 50
MATRICES, ROWS = 8, 8  # of what is computed between exchanges


def link(rank: int, device: torch.device) -> Line:
    """Between ranks 0 and 1, which both call this: half of a message's way there and back."""

    def there_and_back(message: torch.Tensor) -> None:
        for sender in (0, 1):
            if rank == sender:
                dist.send(message, 1 - rank)
            else:
                dist.recv(message, 1 - rank)

    def seconds(message: torch.Tensor) -> float:
        return statistics.fmean(once(lambda: there_and_back(message)) for _ in range(5)) / 2

    return _line(seconds, device)


def exchanges(rank: int, ranks: int, device: torch.device) -> dict[str, Line]:
    """Of all ranks, which all call this, as the ranks that share a stage do it: behind some work, which they are not
    done with at the same time. ``all_reduce``: bytes are those of the tensor that is added up; ``gather``: those of
    what is put together."""
    gang = Gang(rank, ranks, ("here",) * ranks, clock_offset=0.0)
    group = TensorGroup.join(gang, ranks, device.type)
    work = _work(device)

    def gather(message: torch.Tensor) -> None:
        group.put_together(message[: len(message) // ranks], len(message))

    def behind_work(action: Callable[[torch.Tensor], object]) -> Callable[[torch.Tensor], float]:
        def seconds(message: torch.Tensor) -> float:
            took = 0.0
            for _ in range(5):
                once(work)
                took += once(lambda: action(message))
            return took / 5

        return seconds

    return {
        "all_reduce": _line(behind_work(group.add_up), device),
        "gather": _line(behind_work(gather), device),
    }


def _work(device: torch.device) -> Callable[[], object]:
    """About what is computed of a layer between two exchanges, with weights that come from memory."""
    turn = layers_in_turn(MATRICES, device, torch.float32)
    inputs = torch.zeros(ROWS, DEEP, device=device)

    def work() -> None:
        with torch.inference_mode():
            next(turn)(inputs)

    return work


def _line(seconds: Callable[[torch.Tensor], float], device: torch.device) -> Line:
    small, large = (_median(seconds, size, device) for size in (SMALL, LARGE))
    rate = (LARGE - SMALL) / max(large - small, 1e-9)
    return Line(latency_s=max(small - SMALL / rate, 1e-9), bytes_per_s=rate)


def _median(seconds: Callable[[torch.Tensor], float], size: int, device: torch.device) -> float:
    """All ranks do it equally often, so how often can't depend on the time that it takes."""
    message = torch.zeros(size // 4, device=device)
    seconds(message)
    rounds = ROUNDS if size == SMALL else ROUNDS // 5
    return statistics.median(seconds(message) for _ in range(rounds // 5))
