"""SharedExchange: ranks of one host add up and gather tensors in memory that they share, without a network between them."""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from launcher.model.gang import Gang

ROOM = (
    1 << 20
)  # bytes per rank and turn: what is larger is added up in parts, while it is in the cache
FOLDER = Path("/dev/shm") if Path("/dev/shm").is_dir() else None  # memory, whatever the disk is


class SharedExchange:
    """Adds up and gathers tensors of the ranks of one group, two or more, which are processes of one host.

    Each rank has a place for every second turn. It writes its part, tells the others, hears from all of them, and
    reads all parts, which it adds in the order of the ranks, so that all get the same bits. A place is free two turns later: to have
    told of a turn means to be done with the one before. Raises ConnectionError when a rank is gone.
    """

    def __init__(self, memory: torch.Tensor, index: int, peers: list[socket.socket]) -> None:
        self._places, self._index, self._peers = memory, index, peers
        self._turn = 0

    @classmethod
    def join(cls, gang: Gang, ranks: list[int], handle: Any) -> SharedExchange | None:
        """For the group of ``ranks``, whose process group is ``handle``; None where they are on several hosts or can't
        share memory. All of them must call it at once."""
        index, size = ranks.index(gang.rank), 2 * len(ranks) * ROOM
        with contextlib.ExitStack() as stack:
            own = ""
            if index == 0:
                with contextlib.suppress(
                    OSError
                ):  # full, or not ours to write: then it is done without
                    own = stack.enter_context(
                        tempfile.TemporaryDirectory(prefix="launcher-", dir=FOLDER)
                    )
                    _reserve(Path(own) / "sums", size)
                    (Path(own) / "whole").touch()
            folder = Path(_told(own, ranks[0], index, handle))
            seen = torch.tensor(
                [(folder / "whole").is_file()], dtype=torch.int64
            )  # hosts may be called alike
            dist.all_reduce(seen, dist.ReduceOp.MIN, group=handle)
            if not seen:
                return None
            with (folder / "sums").open("r+b") as file:
                memory = torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=torch.uint8)
            peers = _connected(folder, index, len(ranks), lambda: dist.barrier(group=handle))
            dist.barrier(group=handle)  # the folder goes when all have what is in it
        return cls(memory.view(2, len(ranks), ROOM), index, peers)

    def add_up(self, tensor: torch.Tensor) -> None:
        """Replace ``tensor``, contiguous and on the CPU, by the sum of every rank's."""
        for part in _turns(tensor):
            first, second, *others = self._swap(part)
            torch.add(first, second, out=part)
            for other in others:
                part.add_(other)

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Every rank's ``tensor``, contiguous and on the CPU, of one shape on all of them."""
        found = [torch.empty_like(tensor) for _ in range(len(self._peers) + 1)]
        for part, *targets in zip(_turns(tensor), *map(_turns, found), strict=True):
            for target, place in zip(targets, self._swap(part), strict=True):
                target.copy_(place)
        return found

    def _swap(self, part: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Every rank's ``part``, where it lies until the turn after the next one."""
        places = self._places[self._turn, :, : part.numel() * part.element_size()]
        places[self._index].view(part.dtype).copy_(part)
        for peer in self._peers:
            peer.sendall(b"+")
        for peer in self._peers:
            if not peer.recv(1):
                raise ConnectionError("a rank of this host ended")
        self._turn = 1 - self._turn
        return places.view(part.dtype).unbind()


def _turns(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What of it is exchanged in each turn."""
    return tensor.view(-1).split(ROOM // tensor.element_size())


def _reserve(path: Path, size: int) -> None:
    """A file whose bytes are there: writing to one that only seems so long kills a process when memory is full."""
    with path.open("xb") as file:
        os.posix_fallocate(file.fileno(), 0, size)


def _told(own: str, leader: int, index: int, handle: Any) -> str:
    """The leader's ``own``, on all ranks."""
    words = torch.zeros(256, dtype=torch.uint8)
    if index == 0:
        words[: len(own.encode())] = torch.frombuffer(bytearray(own.encode()), dtype=torch.uint8)
    dist.broadcast(words, leader, group=handle)
    return bytes(words.tolist()).rstrip(b"\0").decode()


def _connected(folder: Path, index: int, size: int, meet: Callable[[], Any]) -> list[socket.socket]:
    """A connection with every other rank: each listens, and calls those before it."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / str(index)))
        listening.listen(size)
        meet()
        peers = []
        for other in range(index):
            calling = socket.socket(socket.AF_UNIX)
            calling.connect(str(folder / str(other)))
            peers.append(calling)
        peers += [listening.accept()[0] for _ in range(index + 1, size)]
    return peers
