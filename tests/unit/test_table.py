"""Tables of plans and summaries: what is said, and where."""

from __future__ import annotations

from typing import Any

import pytest
from shown import device, lines, pipelined, plan, stage, summary

from launcher.measure.bubble import SHARES
from launcher.plan.plan import Predicted
from launcher.report.choice import split
from launcher.report.table import plan_table, summary_table


def test_plan_says_what_sits_where() -> None:
    shown = lines(
        plan_table(plan(predicted=Predicted(tokens_per_s=212.4, wall_s=7823, bubble=0.75)))
    )
    assert (
        shown[0]
        == "fits: sequential, 69.0 B parameters, 128 GiB in bfloat16, 1 node x 4 GPUs, 1 rank"
    )
    (first,) = [line for line in shown if "cuda:0" in line]
    assert first.split()[:6] == ["0", "cuda:0", "0-41", "67.3", "GiB", "1.00"]
    assert first.endswith("68.8 of 70.0 GiB")
    (empty,) = [line for line in shown if line.startswith("2")]
    assert "empty" in empty and empty.endswith("0 of 70.0 GiB")
    assert "KV cache 1.95 GiB per replica (320 KiB per token), room for 19 more slots" in " ".join(
        shown
    )
    assert "predicted: 212 tok/s, done in 2h10m, 75 % bubble" in shown
    assert shown[-1] == "! GPUs cuda:2 and cuda:3 stay empty"


def test_equal_replicas_are_shown_once_and_others_all() -> None:
    shown = lines(plan_table(plan(replicas=3)))
    assert "and 2 more replicas like it" in shown
    assert len([line for line in shown if "cuda:0" in line]) == 1
    uneven = plan(replicas=2)
    uneven = uneven.model_copy(update={"devices": [*uneven.devices[:4], device(1, 0, 30, (0, 79))]})
    shown = lines(plan_table(uneven))
    assert [line.split()[0] for line in shown if "cuda:0" in line] == ["0.0", "1.0"]
    assert "node 1 cuda:0" in " ".join(shown)


def test_a_plan_that_does_not_fit_says_so_first_and_why() -> None:
    reason = "stage 0 needs 71.2 GiB of 70.0 GiB"
    shown = lines(plan_table(plan(fits=False, reasons=[reason])))
    assert shown[0].startswith("does not fit: ")
    assert shown[-1] == f"! {reason}"
    assert "more slot" not in " ".join(shown)


def test_many_devices_are_cut_and_counted() -> None:
    many = [device(0, number, 1 + number / 100, (number, number)) for number in range(40)]
    shown = lines(plan_table(plan(devices=many)))
    assert "... and 8 more in plan.json" in shown
    shown = lines(summary_table(summary(stages=[stage(r, s) for r in range(10) for s in range(4)])))
    assert "... and 8 more in summary.json" in shown


def test_summary_puts_measured_beside_predicted() -> None:
    shown = lines(summary_table(summary()))
    assert shown[0] == "demo-0001: pipeline (ring), 2 ranks on cuda, bfloat16, 2 attempts"
    rows = {line.split("  ")[0]: line.split() for line in shown}
    assert rows["tokens/s"][1:3] == ["478", "510"]
    assert rows["tokens/s"][3:] == ["+7", "%", "17,208", "new", "tokens", "in", "1h00m"]
    assert rows["wall time"][2:4] == ["1h02m", "58m20s"]
    assert rows["bubble"][1:7] == ["25", "%", "2.0", "%", "-23", "pt"]
    assert rows["rows"][1:] == ["1,000", "998", "ok,", "2", "failed:", "see", "errors.jsonl"]
    assert "half within 0.31s, 95 % within 0.81s" in " ".join(rows["first token"])
    assert "FLOPs" not in rows


def test_summary_shows_every_share_of_every_stage() -> None:
    shown = lines(summary_table(summary()))
    (row,) = [line for line in shown if "node1 cuda:1" in line]
    assert row.split()[:4] == ["1", "node1", "cuda:1", "0-7"]
    assert row.endswith("60 %    25 %    10 %      0 %  4.0 %  1.0 %  3.00 GiB")
    bar = row.split()[4]
    assert bar.count("█") == round(0.6 * len(bar)) and len(bar) >= 8
    assert shown[-1].split() == ["█", "busy", "░", "bubble", "▓", "transfer", "▒", "weights", "·", "host", "gap", "no", "work"]  # fmt: skip


def test_summary_of_an_array_names_the_world() -> None:
    stages = [stage(0, 0), stage(0, 0, world=1)]
    shown = lines(summary_table(summary(stages=stages)))
    assert [line.split()[0] for line in shown if "cuda:0" in line] == ["0.0", "1.0"]


def test_shards_have_a_number_behind_that_of_their_stage() -> None:
    places = [(r, s, shard) for r in range(2) for s in range(2) for shard in range(2)]
    stages = [stage(r, s, shard=shard) for r, s, shard in places]
    shown = lines(summary_table(summary(stages=stages[:4])))
    named = [line.split()[0] for line in shown if "cuda:" in line]
    assert named == ["0.0", "0.1", "1.0", "1.1"]
    shown = lines(summary_table(summary(stages=stages)))
    named = [line.split()[0] for line in shown if "cuda:" in line]
    assert named == [f"{r}.{s}.{shard}" for r, s, shard in places]
    devices = [
        device(0, s, 10, (40 * s, 40 * s + 39)).model_copy(update={"shard": shard})
        for _, s, shard in places[:4]
    ]
    made = plan(strategy="pipeline", schedule="ring", devices=devices, reasons=[])
    named = [line.split()[0] for line in lines(plan_table(made)) if "cuda:" in line]
    assert named == ["0.0", "0.1", "1.0", "1.1"]


@pytest.mark.parametrize(
    ("candidate", "said"),
    [
        ({"strategy": "sequential"}, "sequential"),
        ({"strategy": "streamed", "replicas": 2}, "2 x streamed"),
        ({"strategy": "pipeline", "stages": 4, "ranks": 4}, "pipeline 4"),
        ({"strategy": "pipeline", "stages": 2, "tensor": 2, "ranks": 4}, "pipeline 2 of 2"),
        ({"strategy": "tensor", "tensor": 2, "ranks": 2}, "tensor 2"),
        ({"strategy": "tensor", "tensor": 2, "ranks": 1}, "tensor 2, threads"),
        ({"strategy": "tensor", "tensor": 2, "replicas": 2, "ranks": 2}, "2 x tensor 2, threads"),
        ({"strategy": "tensor", "tensor": 1, "ranks": 1}, "tensor 1"),
    ],
)
def test_no_two_ways_to_run_it_have_one_name(candidate: dict[str, Any], said: str) -> None:
    assert split({"stages": 1, "tensor": 1, "replicas": 1, "ranks": 1} | candidate) == said


def way(tokens_per_s: float | None, **changes: Any) -> dict[str, Any]:
    names = {"strategy": "pipeline", "stages": 4, "tensor": 1, "replicas": 2, "ranks": 8}
    says = {"groups": 4, "slots": 8, "fits": True, "utilization": 0.9, "chosen": False}
    return {**names, **says, "tokens_per_s": tokens_per_s, "reason": "others", **changes}


@pytest.mark.parametrize(
    ("best", "said"),
    [
        (way(7400.0), "the fastest"),
        (way(7339.0), "the fastest"),
        (way(7294.0), "about as fast as any, in the smallest replicas"),
        (way(None), "its speed is not predicted"),
        (way(None, fits=False), "the nearest to fitting"),
    ],
)
def test_the_fastest_is_what_nothing_is_faster_than(best: dict[str, Any], said: str) -> None:
    others = [way(7339.0, stages=8, replicas=1), way(9000.0, fits=False)]
    made = plan(candidates=[{**best, "chosen": True, "reason": ""}, *others])
    (line,) = [line for line in lines(plan_table(made), 140) if line.startswith("* 2 x pipeline 4")]
    assert line.endswith(f" {said}")


def test_tokens_of_a_score_are_scored() -> None:
    shown = lines(summary_table(summary(task="score")))
    assert any(line.endswith("17,208 scored tokens in 1h00m") for line in shown)


def test_what_is_not_known_is_a_dash() -> None:
    unknown = dict.fromkeys([*SHARES, "peak_memory_bytes", "host"])
    names = ("wall_s", "load_s", "generate_s", "tokens_per_s", "utilization", "bubble", "gpu_hours")
    nothing = {**dict.fromkeys(names), "ttft_s": dict.fromkeys(("mean", "p50", "p95"))}
    shown = lines(summary_table(summary(**nothing, stages=[stage(**unknown)])))
    (row,) = [line for line in shown if "cuda:0" in line]
    assert row.split() == ["0", "cuda:0", "0-7", *["-"] * 7]
    (speed,) = [line for line in shown if line.startswith("tokens/s")]
    assert speed.split()[1:3] == ["-", "510"]


@pytest.mark.parametrize("width", [80, 96, 140])
def test_stages_are_shown_with_what_is_predicted_of_them(width: int) -> None:
    shown = lines(plan_table(pipelined()), width)
    head = next(line for line in shown if "peak of capacity" in line)
    assert "busy" in head
    assert "bubble" in head
    assert ("activations" in head) == (width > 80)
    assert any(line.startswith("activations: in a wider") for line in shown) == (width == 80)
    rows = [line for line in shown if " GiB" in line and "cuda" in line]
    assert len(rows) == 8
    assert all("91 %" in row and "8.6 %" in row for row in rows)
    assert "busy" not in "".join(lines(plan_table(plan()), width))


def test_busy_share_of_a_stage_beside_the_planned_one() -> None:
    stages = [stage(0, 0, predicted={"busy": 0.97, "bubble": 0.03}), stage(0, 1)]
    shown = lines(summary_table(summary(stages=stages)), 120)
    assert any("plan" in line for line in shown)
    assert "97 %  60 %" in next(line for line in shown if "cuda:0" in line)
    assert not any("plan" in line for line in lines(summary_table(summary()), 120))
