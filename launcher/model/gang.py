"""Gang: the ranks of one world, joined. Ranks exchange tensors of bytes, never pickled objects.

The store at which they meet answers, and obeys, whoever calls its port, and so do theirs. So what comes out of it is
sealed, and each connection has to prove that a rank of this attempt is at its other end.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from launcher.errors import PreflightError
from launcher.model.sealed import SealedStore

HOST_BYTES = 64
PINGS = 8
PROOF = 32  # bytes of a challenge, and of its answer


@dataclass(frozen=True)
class Gang:
    """This process's place among the ranks of its world.

    ``hosts`` has a name per rank. ``clock_offset`` is what to add to this host's ``time.time()`` to get
    that of rank 0, in seconds, estimated from the fastest of a few round trips. ``key`` is known to these ranks alone.
    """

    rank: int
    size: int
    hosts: tuple[str, ...]
    clock_offset: float
    key: bytes = field(default=b"", repr=False, compare=False)
    # Kept: torch does not, and groups that are made later need its methods.
    store: SealedStore | None = field(default=None, repr=False, compare=False)

    @classmethod
    def join(cls, rank: int, size: int, key: bytes, timeout_s: float) -> Gang:
        """Meet the other ranks over gloo. All of them have the same ``key``.

        Raises PreflightError where ranks of different runs or plans meet, or somebody else is among them.
        """
        if size == 1:
            return cls(0, 1, (socket.gethostname(),), 0.0)
        timeout = timedelta(seconds=timeout_s)
        plain = next(dist.rendezvous("env://", rank, size, timeout=timeout))[0]
        plain.set_timeout(timeout)
        store = SealedStore(plain, key)
        dist.init_process_group("gloo", timeout=timeout, store=store, rank=rank, world_size=size)
        prove(key, rank, range(size))
        return cls(rank, size, _all_hosts(size), _clock_offset(rank, size), key, store)

    def leave(self) -> None:
        """End the process group; every rank must call it. Without it processes abort at exit."""
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()


def prove(key: bytes, rank: int, ranks: Sequence[int], handle: Any = None) -> None:
    """Hold that each connection between ``ranks``, whose gloo group is ``handle``, has one of them at either end: who
    is challenged answers with what only ``key`` makes of the challenge. All of them call it at once.

    Raises PreflightError. What somebody between two ranks does to their bytes afterwards is not noticed.
    """
    challenge = secrets.token_bytes(PROOF)
    challenges = _exchanged([challenge] * len(ranks), handle)
    answers = [_answer(key, rank, peer, c) for peer, c in zip(ranks, challenges, strict=True)]
    answers = _exchanged(answers, handle)
    strangers = [
        peer
        for peer, answer in zip(ranks, answers, strict=True)
        if not hmac.compare_digest(answer, _answer(key, peer, rank, challenge))
    ]
    if strangers:
        raise PreflightError(
            f"what answers as ranks {strangers} is none of this attempt, or has another plan",
            where=f"rank {rank} on {socket.gethostname()}",
            cause="another program uses this run's rendezvous port",
            fix="launcher resume chooses a new port",
        )


def _answer(key: bytes, speaker: int, hearer: int, challenge: bytes) -> bytes:
    return hmac.digest(key, f"{speaker} to {hearer} ".encode() + challenge, "sha256")


def _exchanged(pieces: list[bytes], handle: Any) -> list[bytes]:
    """The first piece to the first rank of the group, the second to the second; what each of them sent here."""
    sent = torch.frombuffer(bytearray(b"".join(pieces)), dtype=torch.uint8)
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=handle)
    return [bytes(piece.tolist()) for piece in received.split(PROOF)]


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
