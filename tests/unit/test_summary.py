"""Summary: measured beside predicted, from what runs leave behind, and None for what nobody measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from launcher.measure.bubble import SHARES
from launcher.measure.spans import Recorder
from launcher.plan.plan import Batch, DevicePlan, Placement, Plan, Predicted
from launcher.records import Attempt, RankStatus
from launcher.report.measured import length_of_union
from launcher.report.summary import build_summary
from launcher.run import Run, write_json

START = 1_700_000_000.0
GIB = 2**30

Span = tuple[str, float, float]


@dataclass
class Counts:
    total: int = 100
    ok: int = 98
    failed: int = 2
    prompt_tokens: int = 5000
    completion_tokens: int = 1200


def device(rank: int, name: str = "cpu", **changes: Any) -> DevicePlan:
    defaults = {
        "replica": rank,
        "stage": 0,
        "layers": (0, 7),
        "weights_bytes": GIB,
        "kv_bytes": 1000,
    }
    sizes = {"activation_bytes": 10, "peak_bytes": GIB + 1010, "capacity_bytes": None}
    return DevicePlan(rank=rank, device=name, **{**defaults, **sizes, **changes})


def plan(devices: Sequence[DevicePlan], **changes: Any) -> Plan:
    ranks = sorted({each.rank for each in devices})
    values: dict[str, Any] = {
        "fits": True,
        "reasons": [],
        "strategy": "sequential",
        "device": "cpu",
        "dtype": "float32",
        "parameters": 1000,
        "weights_bytes": GIB,
        "kv_bytes_per_token": 64,
        "world_size": len(ranks),
        "ranks_per_node": len(ranks),
        "nodes": 1,
        "devices": devices,
        "placements": [Placement(rank=rank, replica=rank, node=0) for rank in ranks],
        "batch": Batch(groups=1, slots=4, max_length=64, prefill_chunk=32),
        "predicted": Predicted(tokens_per_s=500.0),
    }
    return Plan(**{**values, **changes})


class Scene:
    """A run directory and what its ranks left in it."""

    def __init__(self, folder: Path, made: Plan) -> None:
        self.run = Run.create(folder / "demo-0001")
        self.run.plan.write_text(made.model_dump_json())

    def attempt(self, number: int = 1, world: int = 0, started: float = 0.0) -> Attempt:
        attempt = Attempt(world, number)
        self.run.attempt_dir(attempt).mkdir()
        write_json(self.run.attempt_file(attempt, "attempt"), {"started": START + started})
        return attempt

    def rank(
        self, attempt: Attempt, rank: int, updated: float, replica: int | None = None, **known: Any
    ) -> None:
        """A rank's last status. ``known`` are its figures, and ``rows_done``."""
        status = RankStatus(
            attempt.name, rank, rank if replica is None else replica, f"node{rank}", 1
        )
        status.updated, status.phase = START + updated, "finished"
        status.rows_done = known.pop("rows_done", 0)
        status.figures = known
        write_json(self.run.status(attempt, rank), asdict(status))

    def spans(
        self,
        attempt: Attempt,
        rank: int,
        spans: list[Span],
        replica: int | None = None,
        stage: int = 0,
    ) -> None:
        clock = {"monotonic": 0.0, "epoch": START, "offset": 0.0}
        owner = {"rank": rank, "replica": rank if replica is None else replica, "host": "h"}
        header = {**owner, "attempt": attempt.name, "clock": clock}
        with Recorder(self.run.timeline(attempt, rank), header) as recorder:
            for kind, start, end in spans:
                recorder.add(kind, start, end, stage)

    def summary(self) -> dict[str, Any]:
        summary = build_summary(self.run, Counts())
        json.dumps(summary)
        return summary


def shares_of(stage: dict[str, Any]) -> dict[str, float]:
    return {name: round(stage[name], 6) for name in SHARES if stage[name]}


def test_one_attempt_of_two_replicas(tmp_path: Path) -> None:
    scene = Scene(tmp_path, plan([device(0), device(1)]))
    attempt = scene.attempt()
    scene.spans(
        attempt, 0, [("load", 1, 3), ("prefill", 4, 6), ("decode", 6, 9), ("decode", 10, 14)]
    )
    scene.spans(attempt, 1, [("load", 1, 2), ("prefill", 3, 4), ("decode", 4, 12)])
    scene.rank(
        attempt, 0, 15, load_s=2.0, peak_memory_bytes=2 * GIB, weights_bytes=GIB, bytes_read=GIB,
        rows_done=25, ttft_s_mean=2.0, ttft_s_p50=1.5, ttft_s_p95=4.0,
    )  # fmt: skip
    scene.rank(
        attempt, 1, 16, load_s=1.0, peak_memory_bytes=3 * GIB, rows_done=75,
        ttft_s_mean=1.0, ttft_s_p50=0.5, ttft_s_p95=5.0,
    )  # fmt: skip
    summary = scene.summary()
    assert summary["name"] == "demo-0001"
    assert summary["rows"] == {"total": 100, "ok": 98, "failed": 2}
    assert summary["tokens"] == {"prompt": 5000, "completion": 1200}
    assert (summary["wall_s"], summary["load_s"], summary["generate_s"]) == (16.0, 2.0, 11.0)
    assert summary["tokens_per_s"] == pytest.approx(1200 / 11)
    assert (summary["attempts"], summary["restarts"]) == (1, 0)
    assert summary["ttft_s"] == {"mean": 1.25, "p50": 1.5, "p95": 5.0}
    first, second = summary["stages"]
    assert shares_of(first) == {"busy": 0.9, "host_gap": 0.1}
    assert shares_of(second) == {"busy": round(9 / 11, 6), "no_work": round(2 / 11, 6)}
    assert summary["utilization"] == pytest.approx((0.9 + 9 / 11) / 2)
    assert summary["bubble"] == 0
    assert (first["host"], first["device"], first["layers"]) == ("node0", "cpu", (0, 7))
    assert (first["prefill_s"], first["decode_s"]) == (2.0, 7.0)
    assert (first["peak_memory_bytes"], first["weights_bytes"], first["bytes_read"]) == (
        2 * GIB,
        GIB,
        GIB,
    )
    assert (second["peak_memory_bytes"], second["bytes_read"]) == (3 * GIB, None)
    assert second["weights_bytes"] == GIB  # the plan's
    assert summary["predicted"]["tokens_per_s"] == 500.0
    assert set(summary["predicted"]) <= set(summary)
    assert summary["gpu_hours"] is None


def test_promised_keys_are_there_even_if_nothing_was_left(tmp_path: Path) -> None:
    summary = Scene(tmp_path, plan([device(0)])).summary()
    assert {
        "rows",
        "tokens",
        "wall_s",
        "load_s",
        "generate_s",
        "tokens_per_s",
        "attempts",
        "strategy",
    } <= set(summary)
    assert {"schedule", "world_size", "utilization", "bubble", "stages", "predicted"} <= set(
        summary
    )
    for name in (
        "wall_s",
        "load_s",
        "generate_s",
        "tokens_per_s",
        "utilization",
        "bubble",
        "gpu_hours",
    ):
        assert summary[name] is None
    assert summary["attempts"] == 0
    (stage,) = summary["stages"]
    named = {"replica", "stage", "rank", "host", "device", "layers", *SHARES}
    assert named | {"peak_memory_bytes", "weights_bytes", "bytes_read", "load_s"} <= set(stage)
    assert all(stage[name] is None for name in (*SHARES, "host", "peak_memory_bytes", "load_s"))


def test_time_between_attempts_is_not_counted(tmp_path: Path) -> None:
    scene = Scene(tmp_path, plan([device(0)]))
    first, second = scene.attempt(1), scene.attempt(2, started=100_000)
    scene.spans(first, 0, [("decode", 10, 20), ("decode", 22, 24)])
    scene.rank(first, 0, 25, load_s=9.0, peak_memory_bytes=7.0)
    scene.spans(second, 0, [("decode", 100_005, 100_011)])
    scene.rank(second, 0, 100_012, load_s=4.0)
    summary = scene.summary()
    assert (summary["wall_s"], summary["generate_s"]) == (37.0, 20.0)
    assert (summary["attempts"], summary["restarts"]) == (2, 1)
    (stage,) = summary["stages"]
    assert shares_of(stage) == {"busy": 0.9, "host_gap": 0.1}
    assert (stage["load_s"], stage["peak_memory_bytes"]) == (4.0, 7.0)


def test_an_attempt_that_died_at_once_does_no_harm(tmp_path: Path) -> None:
    scene = Scene(tmp_path, plan([device(0)]))
    scene.run.attempt_dir(Attempt(0, 1)).mkdir()
    torn = scene.attempt(2, started=50)
    scene.run.timeline(torn, 0).write_text('{"rank"')
    last = scene.attempt(3, started=100)
    scene.spans(last, 0, [("decode", 110, 120)])
    summary = scene.summary()
    assert (summary["attempts"], summary["wall_s"], summary["generate_s"]) == (3, 20.0, 10.0)
    assert summary["stages"][0]["busy"] == 1.0


def test_a_replica_that_got_no_row_had_no_work(tmp_path: Path) -> None:
    scene = Scene(tmp_path, plan([device(0), device(1)]))
    attempt = scene.attempt()
    scene.spans(attempt, 0, [("decode", 5, 10)])
    scene.spans(attempt, 1, [("load", 1, 4)])
    assert [shares_of(stage) for stage in scene.summary()["stages"]] == [
        {"busy": 1},
        {"no_work": 1},
    ]


def test_worlds_of_an_array_are_told_apart_and_overlap_in_time(tmp_path: Path) -> None:
    scene = Scene(tmp_path, plan([device(0)]))
    for world, start in ((0, 0.0), (1, 4.0)):
        attempt = scene.attempt(1, world, start)
        scene.spans(attempt, 0, [("decode", start + 1, start + 9)])
        scene.rank(attempt, 0, start + 10, load_s=1.0)
    summary = scene.summary()
    assert [(s["world"], s["replica"]) for s in summary["stages"]] == [(0, 0), (1, 0)]
    assert (summary["wall_s"], summary["generate_s"]) == (14.0, 12.0)
    assert (summary["attempts"], summary["restarts"]) == (2, 0)


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


def test_a_newer_status_with_other_fields_is_still_read(tmp_path: Path) -> None:
    scene = Scene(tmp_path, plan([device(0)]))
    attempt = scene.attempt()
    status = asdict(RankStatus(attempt.name, 0, 0, "here", 1, updated=START + 5))
    write_json(scene.run.status(attempt, 0), {**status, "mood": "good"})
    assert scene.summary()["stages"][0]["host"] == "here"


def test_length_of_union() -> None:
    assert length_of_union([(5, 6), (0, 2), (1, 3), (1, 2), (6, 7)]) == 5
    assert length_of_union([]) == 0
