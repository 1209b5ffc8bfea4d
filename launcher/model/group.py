"""TensorGroup: the ranks that hold one stage together, each a shard of every layer, and what they add up and gather."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as dist

from launcher.errors import PeerLost
from launcher.measure.spans import Recorder
from launcher.model.gang import Gang, prove
from launcher.model.link import FOREVER
from launcher.model.shared import SharedExchange


@dataclass
class TensorGroup:
    """Neighbouring ranks of the gang, which exchange tensors on ``device``, cpu or cuda; ``index`` is this rank's
    place among them.

    All of them must exchange the same things in the same order. Raises PeerLost when one of them is gone.
    """

    names: tuple[str, ...]  # rank and host
    index: int
    handle: Any
    device: str
    shared: SharedExchange | None = None  # of ranks of one host, on its CPU
    _spent: float = field(default=0.0, init=False)

    @classmethod
    def join(cls, gang: Gang, size: int, device: str = "cpu") -> TensorGroup:
        """The group of ``size`` ranks that this rank is in. Every rank of the gang must call this at once, since
        all groups are made in one order."""
        found = None
        for first in range(0, gang.size, size):
            ranks = list(range(first, first + size))
            backend = "nccl" if device == "cuda" else "gloo"
            handle = dist.new_group(ranks, timeout=FOREVER, backend=backend)
            if gang.rank in ranks:
                if backend == "gloo":
                    prove(gang.key, gang.rank, ranks, handle)
                names = tuple(f"rank {rank} on {gang.hosts[rank]}" for rank in ranks)
                found = cls(names, gang.rank - first, handle, device)
        assert found is not None, "the gang has no such rank"
        if device == "cpu":
            first = gang.rank - found.index
            found.shared = SharedExchange.join(gang, list(range(first, first + size)), found.handle)
        return found

    def __len__(self) -> int:
        return len(self.names)

    @property
    def spread(self) -> bool:
        """Whether its ranks are on several hosts, each of which reads files for itself."""
        return len({name.partition(" on ")[2] for name in self.names}) > 1

    def add_up(self, partial: torch.Tensor) -> torch.Tensor:
        """The sum of every rank's ``partial``, in its place; the same on all of them, bit for bit."""
        shared = self.shared
        self._exchange(
            lambda: (
                shared.add_up(partial) if shared else dist.all_reduce(partial, group=self.handle)
            )
        )
        return partial

    def put_together(self, part: torch.Tensor, width: int) -> torch.Tensor:
        """(..., width): the columns of all ranks side by side. ``part`` has this rank's, as ``share`` cuts them."""
        widest = share(width, len(self), 0)[1]
        if part.shape[-1] < widest:
            part = torch.nn.functional.pad(part, (0, widest - part.shape[-1]))
        part = part.contiguous()
        parts: list[torch.Tensor] = []
        self._exchange(lambda: parts.extend(self._gathered(part)))
        return torch.cat(parts, dim=-1)[..., :width]

    def _gathered(self, part: torch.Tensor) -> list[torch.Tensor]:
        """Every rank's ``part``, all of one shape."""
        if self.shared:
            return self.shared.gather(part)
        parts = [torch.empty_like(part) for _ in self.names]
        dist.all_gather(parts, part, group=self.handle)
        return parts

    def take_spent(self) -> float:
        """Seconds that exchanges took since this was last asked, waiting for the slowest rank included; on CUDA
        only those to queue them."""
        spent, self._spent = self._spent, 0.0
        return spent

    def _exchange(self, collective: Callable[[], Any]) -> None:
        began = time.perf_counter()
        try:
            collective()
        except (RuntimeError, OSError) as error:
            others = [name for at, name in enumerate(self.names) if at != self.index]
            raise PeerLost(
                f"lost {' or '.join(others)}: {str(error).partition('. ')[0]}",
                cause="that rank ended, or the network between the two hosts failed",
                fix="see the log of that rank, then launcher resume",
            ) from error
        self._spent += time.perf_counter() - began


class Exchanges(Protocol):
    """What adds up and gathers, and knows how long that took."""

    def take_spent(self) -> float:
        """Seconds that exchanges took since this was last asked."""


class GroupTimer:
    """The timer of a rank whose steps hold exchanges with its ``group`` (or of its threads), for devices that compute while Python
    waits. Of each step's span they are cut off at the end, as one ``transfer``: they are too many for spans
    of their own."""

    def __init__(self, recorder: Recorder, group: Exchanges) -> None:
        self._recorder, self._group = recorder, group

    @contextlib.contextmanager
    def span(self, kind: str, stage: int = 0, group: int = 0, step: int = 0) -> Iterator[None]:
        """Time the block; one that raises leaves no span."""
        self._group.take_spent()
        began = time.perf_counter()
        yield
        ended = time.perf_counter()
        computed = ended - self._group.take_spent()
        self._recorder.add(kind, began, computed, stage, group, step)
        self._recorder.add("transfer", computed, ended, stage, group, step)

    def poll(self) -> None:
        """Nothing is ever late here."""

    def close(self) -> None:
        """Nothing is ever late here."""


def share(width: int, size: int, index: int) -> tuple[int, int]:
    """First and end of the columns (or rows) of ``width`` that rank ``index`` of ``size`` holds; the last ranks
    have fewer where ``size`` does not divide it, as torch's ``chunk`` has it."""
    each = -(-width // size)
    return min(index * each, width), min((index + 1) * each, width)
