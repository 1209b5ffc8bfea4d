"""Predicted beside measured: every figure of a plan has its pair, and the report and the command show the same ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jobs import launcher
from report_runs import Pipeline

from launcher.errors import Damaged, RunFailed
from launcher.plan.plan import DevicePlan, Plan, Predicted
from launcher.report.compare import RUN, STAGE, compare, of_run, of_stages, off, pairs_of
from launcher.run import Run

SETTINGS = {"replica", "stage", "shard", "rank", "device", "layers", "capacity_bytes"}
NAMES = {"utilization": "busy", "peak_bytes": "peak_memory_bytes"}


def pair(pairs: list[dict[str, Any]], figure: str, stage: int | None = None) -> dict[str, Any]:
    """The only one of that name: of the run, or of a stage."""
    (found,) = (
        p for p in pairs if p["figure"] == figure and (p["place"] or {}).get("stage") == stage
    )
    return found


def parts(run: Run) -> tuple[Plan, dict[str, Any]]:
    summary: dict[str, Any] = json.loads(run.summary.read_text())
    return Plan.model_validate_json(run.plan.read_bytes()), summary


def test_every_figure_of_a_plan_has_its_pair() -> None:
    assert {figure.name for figure in RUN} == set(Predicted.model_fields)
    predicted = {NAMES.get(name, name) for name in set(DevicePlan.model_fields) - SETTINGS}
    assert {figure.name for figure in STAGE} == predicted


def test_pairs_are_those_of_the_summary(tmp_path: Path) -> None:
    run = Pipeline(steps=10, replicas=2).write(tmp_path)
    run.manifest.write_text("{}")
    plan, summary = parts(run)
    pairs = summary["compared"]
    assert pairs == pairs_of(run, "complete") == compare(plan, summary)
    assert len(of_run(pairs)) == len(RUN)
    assert len(of_stages(pairs)) == 8 * len(STAGE)
    speed = pair(pairs, "tokens_per_s")
    assert (speed["predicted"], speed["measured"]) == (3300.0, summary["tokens_per_s"])
    assert speed["difference"] == pytest.approx(3300 / summary["tokens_per_s"] - 1)
    busy = pair(pairs, "utilization")
    assert busy["difference"] == pytest.approx(0.75 - summary["utilization"])
    assert all((p["difference"] is None) == (p["missing"] is not None) for p in pairs)


def test_weights_and_caches_are_compared_where_the_rank_told_them(tmp_path: Path) -> None:
    run = Pipeline(steps=10).write(tmp_path)
    plan, summary = parts(run)
    summary["stages"][0] |= {"weights_bytes": 30 * 2**30, "kv_bytes": 6 * 2**30}
    pairs = compare(plan, summary)
    assert pair(pairs, "weights_bytes", 0)["difference"] == pytest.approx(32 / 30 - 1)
    assert pair(pairs, "kv_bytes", 0)["difference"] == pytest.approx(9 / 6 - 1)
    assert pair(pairs, "weights_bytes", 1)["measured"] is None  # the summary has the plan's


def test_what_is_missing_says_why(tmp_path: Path) -> None:
    run = Pipeline(steps=10).write(tmp_path)
    plan, summary = parts(run)
    summary["stages"][2] |= {"host": None, "peak_memory_bytes": None, "busy": None}
    summary["gpu_hours"] = None
    devices = [d.model_copy(update={"utilization": 0.7}) for d in plan.devices]
    pairs = compare(plan.model_copy(update={"devices": devices}), summary)
    assert pair(pairs, "peak_memory_bytes", 2)["missing"] == "rank 2 left no status"
    assert pair(pairs, "busy", 2)["missing"] == "rank 2 left no status"
    assert "no attempt left" in pair(pairs, "gpu_hours")["missing"]
    assert "within the peak" in pair(pairs, "activation_bytes", 0)["missing"]
    assert "all its devices" in pair(pairs, "weights_bytes", 1)["missing"]
    assert "older version" in pair(pairs, "load_s")["missing"]
    unknown = plan.model_copy(update={"predicted": Predicted(), "gpus_per_node": 0})
    pairs = compare(unknown, summary)
    assert "no GPUs" in pair(pairs, "gpu_hours")["missing"]
    assert "backend" in pair(pairs, "tokens_per_s")["missing"]


def test_tokens_are_called_what_they_are_and_a_script_has_none(tmp_path: Path) -> None:
    plan, summary = parts(Pipeline(steps=10).write(tmp_path))
    assert pair(summary["compared"], "new_tokens")["label"] == "new tokens"
    scored = compare(plan.model_copy(update={"task": "score"}), summary)
    assert pair(scored, "new_tokens")["label"] == "scored tokens"
    script = {"strategy": "script", "predicted": Predicted()}
    found = of_run(compare(plan.model_copy(update=script), summary))
    assert [each["figure"] for each in found] == ["wall_s", "gpu_hours"]
    assert all("a script" in str(each["missing"]) for each in found)


def test_what_grows_is_not_compared_while_the_run_goes(tmp_path: Path) -> None:
    plan, summary = parts(Pipeline(steps=10).write(tmp_path))
    plan = plan.model_copy(update={"predicted": Predicted(new_tokens=1e6, tokens_per_s=3300)})
    summary["rows"] |= {"ok": 3}
    pairs = compare(plan, summary)
    tokens = pair(pairs, "new_tokens")
    assert (tokens["predicted"], tokens["measured"]) == (1e6, summary["new_tokens"])
    assert (tokens["missing"], off(tokens)) == ("the run is not over", "")
    assert pair(pairs, "decode_s", 0)["missing"] == "the run is not over"
    assert pair(pairs, "tokens_per_s")["difference"] is not None


def test_worlds_of_an_array_are_predicted_together(tmp_path: Path) -> None:
    plan, summary = parts(Pipeline(steps=10).write(tmp_path))
    both = plan.model_copy(update={"worlds": 2})
    assert pair(compare(both, summary), "tokens_per_s")["predicted"] == 6600.0
    assert pair(compare(both, summary), "wall_s")["predicted"] == 5.0


def test_run_that_is_not_complete(tmp_path: Path) -> None:
    run = Pipeline(steps=10).write(tmp_path, complete=False)
    with pytest.raises(RunFailed) as caught:
        pairs_of(run, "stopped")
    assert "stopped" in caught.value.what
    assert caught.value.fix == f"launcher resume {run.path}"
    with pytest.raises(RunFailed) as caught:
        pairs_of(run, "running")
    assert caught.value.fix == f"launcher status {run.path}"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("plan.json", "[1]", "not a JSON object"),
        ("plan.json", '{"fits": true}', "not a plan: reasons: Field required"),
        ("plan.json", "{", "not JSON"),
        ("summary.json", '{"stages": [{}]}', "not the summary of this run's plan"),
        ("summary.json", '{"stages": 1}', "not the summary of this run's plan"),
    ],
)
def test_files_that_are_none(name: str, text: str, said: str, tmp_path: Path) -> None:
    run = Pipeline(steps=10).write(tmp_path)
    run.manifest.write_text("{}")
    (run.path / name).write_text(text)
    with pytest.raises(Damaged) as caught:
        pairs_of(run, "complete")
    assert said in caught.value.what
    assert caught.value.where == str(run.path / name)
    assert caught.value.cause and caught.value.fix
    if text == "[1]":
        assert said in launcher("plan", "--check", run.path, code=1).stderr


def test_command(tmp_path: Path) -> None:
    run = Pipeline(steps=10).write(tmp_path)
    run.manifest.write_text("{}")
    document = json.loads(launcher("plan", "--check", run.path, "--json").stdout)
    assert document["pairs"] == pairs_of(run, "complete")
    shown = launcher("plan", "--check", run.path).stdout
    for words in ("tokens/s", "3,300", "GPU hours", "rank 3", "not compared"):
        assert words in shown
    refused = launcher("plan", code=2)
    assert "--check" in refused.stderr
