"""SharedExchange with real ranks: the same sums and gathered tensors on all of them, of any size, and a rank that ends."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from launcher.errors import PeerLost
from launcher.model.gang import Gang
from launcher.model.group import TensorGroup
from launcher.model.shared import ROOM
from launcher.runtime.network import free_port

RANKS = 3
SIZES = (1, 7, ROOM // 4, ROOM // 4 + 1, ROOM)  # elements of 4 bytes: more than fits at once, too


def part(rank: int, size: int, dtype: torch.dtype) -> torch.Tensor:
    draw = torch.Generator().manual_seed(100 * rank + size % 97)
    return torch.randn(size, generator=draw).to(dtype)


def work(rank: int, port: int, results: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    gang = Gang.join(rank, RANKS, b"key", 240.0)
    group = TensorGroup.join(gang, RANKS)
    assert group.shared is not None
    found = [
        group.add_up(part(rank, size, dtype))
        for dtype in (torch.float32, torch.bfloat16)
        for size in SIZES * 3
    ]
    found += [group.put_together(part(rank, size, torch.float32), RANKS * size) for size in SIZES]
    results.put((rank, [tensor.float().numpy() for tensor in found]))
    if rank == 2:
        return
    try:
        group.add_up(torch.ones(5))
    except PeerLost as error:
        results.put((rank, str(error)))


def test_all_ranks_get_the_same_sums_and_hear_of_one_that_ends() -> None:
    before = set(Path("/dev/shm").glob("launcher-*"))
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    port = free_port("127.0.0.1")
    ranks = [context.Process(target=work, args=(rank, port, results)) for rank in range(RANKS)]
    for process in ranks:
        process.start()
    told: dict[int, list[Any]] = {rank: [] for rank in range(RANKS)}
    for _ in range(RANKS + 2):
        rank, found = results.get(timeout=300)
        told[rank].append(found)
    for process in ranks:
        process.join()
    number = 0
    for dtype in (torch.float32, torch.bfloat16):
        for size in SIZES * 3:
            expected = sum(part(rank, size, dtype).double() for rank in range(RANKS))
            sums = [torch.from_numpy(told[rank][0][number]) for rank in range(RANKS)]
            assert all(torch.equal(one, sums[0]) for one in sums)
            tolerance = 1e-5 if dtype is torch.float32 else 5e-2
            torch.testing.assert_close(sums[0].double(), expected, atol=tolerance, rtol=tolerance)
            number += 1
    for size in SIZES:
        whole = torch.cat([part(rank, size, torch.float32) for rank in range(RANKS)])
        assert all(torch.equal(torch.from_numpy(told[r][0][number]), whole) for r in range(RANKS))
        number += 1
    for rank in (0, 1):
        assert "rank 2" in told[rank][1]
    assert set(Path("/dev/shm").glob("launcher-*")) == before


def test_places_are_free_again_only_when_all_have_read_them() -> None:
    """Two ranks as two threads: what one adds up is never the other's next part."""
    import socket
    import threading

    from launcher.model.shared import SharedExchange

    memory = torch.zeros(2, 2, ROOM, dtype=torch.uint8)
    ends = socket.socketpair()
    sums = [SharedExchange(memory, index, [ends[index]]) for index in (0, 1)]
    wrong = []

    def go(index: int) -> None:
        for turn in range(300):
            tensor = torch.full((5,), float(turn * (index + 1)))
            sums[index].add_up(tensor)
            if tensor.tolist() != [3.0 * turn] * 5:
                wrong.append((index, turn))

    threads = [threading.Thread(target=go, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    for end in ends:
        end.close()
    with pytest.raises(OSError):
        sums[0].add_up(torch.ones(1))
