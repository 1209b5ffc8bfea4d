"""Gang: the ranks of one world, joined. Ranks exchange tensors of bytes, never pickled objects."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from launcher.errors import PreflightError

HOST_BYTES = 64
PINGS = 8


@dataclass(frozen=True)
class Gang:
    """This process's place among the ranks of its world.

    ``hosts`` has a name per rank. ``clock_offset`` is what to add to this host's ``time.time()`` to get
    that of rank 0, in seconds, estimated from the fastest of a few round trips.
    """

    rank: int
    size: int
    hosts: tuple[str, ...]
    clock_offset: float

    @classmethod
    def join(cls, rank: int, size: int, fingerprint: int, timeout_s: float) -> Gang:
        """Meet the other ranks over gloo. ``fingerprint`` (below 2**63) must be the same on all of them.

        Raises PreflightError where ranks of different runs or plans meet.
        """
        if size == 1:
            return cls(0, 1, (socket.gethostname(),), 0.0)
        dist.init_process_group(
            "gloo", timeout=timedelta(seconds=timeout_s), rank=rank, world_size=size
        )
        hosts = _all_hosts(size)
        prints = torch.empty(size, dtype=torch.int64)
        dist.all_gather_into_tensor(prints, torch.tensor([fingerprint]))
        if not bool((prints == fingerprint).all()):
            raise PreflightError(
                f"ranks {[i for i in range(size) if prints[i] != fingerprint]} run another plan",
                where=f"rank {rank} on {hosts[rank]}",
                cause="processes of another run listen on this run's rendezvous port",
                fix="launcher resume chooses a new port",
            )
        return cls(rank, size, hosts, _clock_offset(rank, size))

    def leave(self) -> None:
        """End the process group; every rank must call it. Without it processes abort at exit."""
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()


def _all_hosts(size: int) -> tuple[str, ...]:
    name = socket.gethostname().encode()[:HOST_BYTES].ljust(HOST_BYTES, b"\0")
    names = torch.empty(size * HOST_BYTES, dtype=torch.uint8)
    dist.all_gather_into_tensor(names, torch.frombuffer(bytearray(name), dtype=torch.uint8))
    data = names.numpy().tobytes()
    return tuple(
        data[i * HOST_BYTES : (i + 1) * HOST_BYTES].rstrip(b"\0").decode(errors="replace")
        for i in range(size)
    )


def _clock_offset(rank: int, size: int) -> float:
    """Round trips with rank 0, one rank after the other; the fastest one bounds the error best."""
    stamp = torch.zeros(1, dtype=torch.float64)
    if rank == 0:
        for peer in range(1, size):
            for _ in range(PINGS):
                dist.recv(stamp, peer)
                stamp[0] = time.time()
                dist.send(stamp, peer)
        return 0.0
    best = (float("inf"), 0.0)
    for _ in range(PINGS):
        sent = time.time()
        dist.send(stamp, 0)
        dist.recv(stamp, 0)
        received = time.time()
        best = min(best, (received - sent, float(stamp[0]) - (sent + received) / 2))
    return best[1]
