"""Summary: measured beside predicted, from what runs leave behind, and None for what nobody measured."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
from scenes import GIB, START, Scene, device, plan, shares_of

from launcher.measure.bubble import SHARES
from launcher.records import Attempt, RankStatus
from launcher.report.measured import length_of_union
from launcher.run import write_json


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
    nothing = (*SHARES, "host", "peak_memory_bytes", "kv_bytes", "load_s")
    assert all(stage[name] is None for name in nothing)


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


def test_a_newer_status_with_other_fields_is_still_read(tmp_path: Path) -> None:
    scene = Scene(tmp_path, plan([device(0)]))
    attempt = scene.attempt()
    status = asdict(RankStatus(attempt.name, 0, 0, "here", 1, updated=START + 5))
    write_json(scene.run.status(attempt, 0), {**status, "mood": "good"})
    assert scene.summary()["stages"][0]["host"] == "here"


def test_length_of_union() -> None:
    assert length_of_union([(5, 6), (0, 2), (1, 3), (1, 2), (6, 7)]) == 5
    assert length_of_union([]) == 0
