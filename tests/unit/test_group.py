"""Tensor groups: who holds what, what exchanges leave in the timeline, and how a lost rank is told."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from launcher.errors import PeerLost
from launcher.measure.spans import Recorder
from launcher.measure.timeline import read_timelines
from launcher.model import group as module
from launcher.model.group import GroupTimer, TensorGroup, share


def made(index: int = 1) -> TensorGroup:
    return TensorGroup(("rank 2 on a", "rank 3 on b"), index, None, "cpu")


@pytest.mark.parametrize(("width", "size"), [(8, 2), (401, 4), (9, 4), (5, 1), (3, 4)])
def test_shares_are_those_of_torch(width: int, size: int) -> None:
    parts = [part.tolist() for part in torch.arange(width).chunk(size)]
    found = [list(range(*share(width, size, index))) for index in range(size)]
    assert [part for part in found if part] == parts


def test_exchanges_are_cut_off_a_steps_span(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.dist, "all_reduce", lambda *_, **__: time.sleep(0.05))
    group, path = made(), tmp_path / "timeline"
    with Recorder(path, {"rank": 3, "replica": 0, "host": "b", "attempt": "w0000-a0001"}) as to:
        timer = GroupTimer(to, group)
        group.add_up(torch.ones(1))  # before the step: none of its time
        with timer.span("decode", 2, 1, 7):
            time.sleep(0.02)
            group.add_up(torch.ones(1))
            group.add_up(torch.ones(1))
    (timeline,) = read_timelines([path])
    decode, transfer = timeline.select("decode")[0], timeline.select("transfer")[0]
    assert transfer["end"] - transfer["start"] >= 0.1
    assert decode["end"] == pytest.approx(transfer["start"], abs=1e-5)
    assert (transfer["stage"], transfer["group"], transfer["step"]) == (2, 1, 7)
    assert timeline.totals[2, "transfer"][1] == timeline.totals[2, "decode"][1] == 1


def test_a_lost_rank_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("Connection closed by peer. This is said at length")

    monkeypatch.setattr(module.dist, "all_reduce", broken)
    with pytest.raises(PeerLost) as caught:
        made().add_up(torch.ones(1))
    assert "lost rank 2 on a: Connection closed by peer" in str(caught.value)
    assert "length" not in str(caught.value)
