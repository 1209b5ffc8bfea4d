"""Real gloo ranks meet, agree on hosts, and notice a stranger."""

from __future__ import annotations

import multiprocessing
import socket
from pathlib import Path

import pytest

from launcher.errors import PreflightError
from launcher.model.gang import Gang
from launcher.runtime.network import free_port


def test_a_gang_of_one_needs_nothing() -> None:
    assert Gang.join(0, 1, 7, 1.0) == Gang(0, 1, (socket.gethostname(),), 0.0)


def _rank(rank: int, size: int, port: int, fingerprint: int, out: Path) -> None:
    import os

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    try:
        gang = Gang.join(rank, size, fingerprint, 60.0)
        said = f"{gang.rank} {gang.size} {len(gang.hosts)} {abs(gang.clock_offset) < 5}"
        gang.leave()
    except PreflightError as error:
        said = f"refused: {error.what}"
    (out / str(rank)).write_text(said)
    os._exit(0)


def _run(out: Path, fingerprints: list[int]) -> list[str]:
    context = multiprocessing.get_context("spawn")
    port, size = free_port("127.0.0.1"), len(fingerprints)
    ranks = [
        context.Process(target=_rank, args=(rank, size, port, fingerprint, out))
        for rank, fingerprint in enumerate(fingerprints)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    return [(out / str(rank)).read_text() for rank in range(size)]


def test_ranks_join_and_leave(tmp_path: Path) -> None:
    assert _run(tmp_path, [7, 7, 7]) == [f"{rank} 3 3 True" for rank in range(3)]


@pytest.mark.parametrize("fingerprints", [[7, 8], [8, 7]])
def test_a_rank_of_another_plan_is_refused(tmp_path: Path, fingerprints: list[int]) -> None:
    assert all(said.startswith("refused: ranks") for said in _run(tmp_path, fingerprints))
