"""Links: messages from one rank to another, and sums over ranks."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist

from launcher.bench.clock import seconds
from launcher.model.gang import Gang
from launcher.model.group import TensorGroup
from launcher.plan.measured import Line

SMALL, LARGE = 1 << 12, 1 << 23  # bytes
ROUNDS = 50


def link(rank: int, device: torch.device) -> Line:
    """Between ranks 0 and 1, which both call this: half of a message's way there and back."""

    def there_and_back(message: torch.Tensor) -> None:
        for sender in (0, 1):
            if rank == sender:
                dist.send(message, 1 - rank)
            else:
                dist.recv(message, 1 - rank)

    return _line(there_and_back, device, ways=2)


def exchanges(rank: int, ranks: int, device: torch.device) -> dict[str, Line]:
    """Of all ranks, which all call this, as the ranks that share a stage do it. ``all_reduce``: bytes are those of
    the tensor that is added up; ``gather``: those of what is put together."""
    gang = Gang(rank, ranks, ("here",) * ranks, clock_offset=0.0)
    group = TensorGroup.join(gang, ranks, device.type)

    def gather(message: torch.Tensor) -> None:
        group.put_together(message[: len(message) // ranks], len(message))

    return {
        "all_reduce": _line(group.add_up, device, ways=1),
        "gather": _line(gather, device, ways=1),
    }


def _line(action: Callable[[torch.Tensor], object], device: torch.device, ways: int) -> Line:
    small, large = (_seconds(action, size, device) / ways for size in (SMALL, LARGE))
    rate = (LARGE - SMALL) / max(large - small, 1e-9)
    return Line(latency_s=max(small - SMALL / rate, 1e-9), bytes_per_s=rate)


def _seconds(action: Callable[[torch.Tensor], object], size: int, device: torch.device) -> float:
    """All ranks do it equally often, so how often can't depend on the time that it takes."""
    message = torch.zeros(size // 4, device=device)
    rounds = ROUNDS if size == SMALL else ROUNDS // 5
    found = [seconds(lambda: action(message), enough_s=0.0) for _ in range(rounds // 5)]
    return sorted(found)[len(found) // 2]
