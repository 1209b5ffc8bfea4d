"""Real gloo ranks meet, agree on hosts, and notice strangers."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from launcher.errors import PreflightError
from launcher.model.gang import PROOF, Gang, _answer, prove
from launcher.model.sealed import SealedStore
from launcher.runtime.network import free_port


def test_a_gang_of_one_needs_nothing() -> None:
    assert Gang.join(0, 1, b"key", 1.0) == Gang(0, 1, (socket.gethostname(),), 0.0)


def _rank(rank: int, size: int, port: int, key: bytes, out: Path) -> None:
    _in_world(port)
    try:
        gang = Gang.join(rank, size, key, 240.0)
        said = f"{gang.rank} {gang.size} {len(gang.hosts)} {abs(gang.clock_offset) < 5}"
        gang.leave()
    except PreflightError as error:
        said = f"refused: {error.what}"
    (out / str(rank)).write_text(said)
    os._exit(0)


def _connected(rank: int, size: int, port: int, key: bytes, out: Path) -> None:
    """A rank whose connections somebody else could have made: only ``prove`` is between them."""
    _in_world(port)
    dist.init_process_group("gloo", rank=rank, world_size=size)
    try:
        prove(key, rank, range(size))
        said = "proven"
    except PreflightError as error:
        said = f"refused: {error.what}"
    (out / str(rank)).write_text(said)
    dist.barrier()  # else the first one to leave cuts the others short
    os._exit(0)


def _in_world(port: int) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")


def _run(out: Path, keys: list[bytes], what: Callable[..., None] = _rank) -> list[str]:
    context = multiprocessing.get_context("spawn")
    port, size = free_port("127.0.0.1"), len(keys)
    ranks = [
        context.Process(target=what, args=(rank, size, port, key, out))
        for rank, key in enumerate(keys)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    return [(out / str(rank)).read_text() for rank in range(size)]


def test_ranks_join_and_leave(tmp_path: Path) -> None:
    assert _run(tmp_path, [b"key"] * 3) == [f"{rank} 3 3 True" for rank in range(3)]


def test_a_rank_of_another_plan_is_refused(tmp_path: Path) -> None:
    said = _run(tmp_path, [b"key", b"yek"])
    assert all("not from a rank of this attempt" in each for each in said), said


def test_a_stranger_at_the_end_of_a_connection_is_named_by_the_others(tmp_path: Path) -> None:
    said = _run(tmp_path, [b"key", b"guess", b"key"], _connected)
    refused = "refused: what answers as ranks {} is none of this attempt, or has another plan"
    assert said == [refused.format(ranks) for ranks in ("[1]", "[0, 2]", "[1]")]


def test_an_answer_is_good_for_one_direction_and_one_challenge_alone() -> None:
    one, other = secrets.token_bytes(PROOF), secrets.token_bytes(PROOF)
    answers = [_answer(b"key", *pair, c) for pair in ((0, 1), (1, 0)) for c in (one, other)]
    assert len(set(answers)) == 4
    assert {len(answer) for answer in answers} == {PROOF}


@pytest.mark.parametrize("value", [b"", b"\0" * 31, b"\xff" * 200, b"other's"])
def test_a_value_that_somebody_else_wrote_is_refused_before_it_is_read(value: bytes) -> None:
    plain = dist.HashStore()
    store = SealedStore(plain, b"key")
    store.set("place", b"here")
    assert store.get("place") == b"here"
    if value == b"other's":
        store.set("elsewhere", b"here")
        value = plain.get("elsewhere")  # a value of ours, in another's place
    plain.set("place", value)
    with pytest.raises(PreflightError, match="of place is not from a rank of this attempt"):
        store.get("place")


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 1000])
def test_nobody_else_can_read_what_is_in_the_store(size: int) -> None:
    """Such as NCCL's id, which lets in whoever knows it."""
    plain, value = dist.HashStore(), bytes(size)
    store = SealedStore(plain, b"key")
    written = []
    for key in ("one", "another", "one"):
        store.set(key, value)
        assert store.get(key) == value
        written.append(plain.get(key)[32 + 16 :])  # behind seal and nonce
    assert [len(each) for each in written] == [size] * 3
    if size > 30:
        assert len(set(written)) == 3, "equal values look different"
        assert all(value[:16] not in each for each in written)
    with pytest.raises(PreflightError):
        SealedStore(plain, b"guess").get("one")
