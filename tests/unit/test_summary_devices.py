"""summary.json of ranks with several devices, of stages and of shards; use of the devices' peaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scenes import GIB, Scene, device, plan, shares_of

from launcher.plan.plan import Plan


def gpus(used: int, **changes: Any) -> Plan:
    """One rank that owns four GPUs, of which ``used`` hold layers."""
    devices = [
        device(
            0,
            f"cuda:{i}",
            stage=i,
            layers=(i, i) if i < used else None,
            weights_bytes=GIB if i < used else 0,
        )
        for i in range(4)
    ]
    spilled = device(0, "disk", stage=4)
    return plan([*devices, spilled], device="cuda", gpus_per_node=4, **changes)


def test_gpus_without_layers_are_rented_and_idle(tmp_path: Path) -> None:
    scene = Scene(tmp_path, gpus(used=1))
    attempt = scene.attempt()
    scene.spans(attempt, 0, [("decode", 1, 5), ("decode", 6, 9)])
    scene.rank(attempt, 0, 3600, peak_memory_bytes=5.0)
    summary = scene.summary()
    assert [shares_of(s) for s in summary["stages"]] == [{"busy": 0.875, "host_gap": 0.125}] + [
        {"no_work": 1}
    ] * 3
    assert [s["peak_memory_bytes"] for s in summary["stages"]] == [5.0, None, None, None]
    assert summary["utilization"] == pytest.approx(0.875 / 4)
    assert summary["gpu_hours"] == 4.0


def test_what_is_not_known_of_each_of_several_gpus_is_not_made_up(tmp_path: Path) -> None:
    scene = Scene(tmp_path, gpus(used=4))
    attempt = scene.attempt()
    scene.spans(attempt, 0, [("decode", 1, 9)])
    scene.rank(attempt, 0, 10, load_s=1.0, peak_memory_bytes=9.0, **{"bytes_read@1": 3.0})
    summary = scene.summary()
    assert summary["utilization"] is None
    for stage in summary["stages"]:
        assert (
            stage["busy"] is None
            and stage["decode_s"] is None
            and stage["peak_memory_bytes"] is None
        )
        assert stage["load_s"] == 1.0
    assert [s["bytes_read"] for s in summary["stages"]] == [None, 3.0, None, None]


def test_a_rank_tells_the_peak_of_each_of_its_gpus_and_all_else_of_them_together(
    tmp_path: Path,
) -> None:
    # The second GPU has the first shard.
    devices = [device(rank, f"cuda:{2 * rank + 1 - n}", shard=n) for rank in (0, 1) for n in (0, 1)]
    scene = Scene(tmp_path, plan(devices, device="cuda", gpus_per_node=4))
    attempt = scene.attempt()
    for rank in (0, 1):
        peaks = {f"peak_memory_bytes@gpu{n}": 10.0 * rank + n for n in (0, 1)}
        total = sum(peaks.values())
        scene.rank(attempt, rank, 10, peak_memory_bytes=total, bytes_read=5.0, **peaks)
    summary = scene.summary()
    assert [s["peak_memory_bytes"] for s in summary["stages"]] == [1.0, 0.0, 11.0, 10.0]
    assert [s["bytes_read"] for s in summary["stages"]] == [None] * 4
    told = [(r["devices"], r["peak_memory_bytes"], r["bytes_read"]) for r in summary["ranks"]]
    assert told == [(["cuda:1", "cuda:0"], 1.0, 5.0), (["cuda:3", "cuda:2"], 21.0, 5.0)]


def test_use_of_peaks(tmp_path: Path) -> None:
    """Two of four GPUs, 10 s, 6200 tokens of 1000 parameters, 8 steps that each read 2 GiB."""
    scene = Scene(tmp_path, gpus(used=2, peak_flops=1e6, peak_bandwidth=GIB))
    attempt = scene.attempt()
    scene.spans(
        attempt,
        0,
        [("prefill", 0, 1), *(("decode", t, t + 1.0) for t in range(1, 7)), ("decode", 9, 10)],
    )
    summary = scene.summary()
    assert summary["flop_utilization"] == pytest.approx(2 * 1000 * 6200 / (4 * 10 * 1e6))
    assert summary["bandwidth_utilization"] == pytest.approx(8 * 2 / (4 * 10))


def test_use_of_unknown_peaks_is_unknown(tmp_path: Path) -> None:
    scene = Scene(tmp_path, gpus(used=2))
    scene.spans(scene.attempt(), 0, [("decode", 0, 1)])
    summary = scene.summary()
    assert (summary["flop_utilization"], summary["bandwidth_utilization"]) == (None, None)


def test_stages_of_a_pipeline_share_a_replica(tmp_path: Path) -> None:
    devices = [device(rank, replica=0, stage=rank) for rank in (0, 1)]
    scene = Scene(tmp_path, plan(devices, strategy="pipeline", schedule="naive"))
    attempt = scene.attempt()
    for rank in (0, 1):
        steps = [("decode", float(t), t + 1.0) for t in range(rank, 20, 2)]
        scene.spans(attempt, rank, [*steps, ("wait", 0, 1)], replica=0, stage=rank)
    summary = scene.summary()
    assert (summary["strategy"], summary["schedule"]) == ("pipeline", "naive")
    assert summary["utilization"] == 0.5
    assert [shares_of(s) for s in summary["stages"]] == [
        {"busy": 0.5, "bubble": 0.45, "no_work": 0.05},
        {"busy": 0.5, "bubble": 0.5},
    ]


def test_shards_of_a_stage_are_told_apart(tmp_path: Path) -> None:
    devices = [device(rank, replica=0, shard=rank) for rank in (0, 1)]
    scene = Scene(tmp_path, plan(devices, strategy="tensor"))
    attempt = scene.attempt()
    for rank in (0, 1):
        steps = [("decode", 0.0, 8.0 - rank), ("transfer", 8.0 - rank, 10.0)]
        scene.spans(attempt, rank, steps, replica=0)
    found = [(s["stage"], s["shard"], s["rank"], s["busy"]) for s in scene.summary()["stages"]]
    assert [place[:3] for place in found] == [(0, 0, 0), (0, 1, 1)]
    assert found[0][3] > found[1][3] > 0


def test_what_a_rank_measured_is_true_of_all_its_shards(tmp_path: Path) -> None:
    devices = [device(0, shard=shard) for shard in (0, 1)]
    scene = Scene(tmp_path, plan(devices, strategy="tensor"))
    attempt = scene.attempt()
    scene.spans(attempt, 0, [("decode", 0, 6), ("transfer", 6, 8), ("decode", 8, 10)])
    scene.rank(attempt, 0, 10, load_s=1.0, peak_memory_bytes=9.0)
    one, other = scene.summary()["stages"]
    assert (one["shard"], other["shard"]) == (0, 1)
    assert one["busy"] == other["busy"] == pytest.approx(0.8)
    assert one["decode_s"] == 8
    assert one["peak_memory_bytes"] is None, "is of both together"
