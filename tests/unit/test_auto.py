"""`strategy: auto`, and what `launcher plan` says of the ways not taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.errors import SpecError, UsageError
from launcher.plan.choose import ALIKE, ranked, why
from launcher.plan.plan import Plan
from launcher.plan.subject import full_part
from launcher.prepare import plan_job

CONFIGS = Path(__file__).parents[2] / "configs"


def plan(*overrides: str, config: str = "demo", strategy: str = "auto") -> Plan:
    """Of the demo's model, for four GPUs."""
    base = {
        "parallel.strategy": strategy,
        "resources.device": "cuda",
        "resources.gpus_per_node": "4",
        "resources.gpu": "A100-80GB",
    }
    given = base | dict(override.split("=", 1) for override in overrides)
    pairs = [f"{key}={value}" for key, value in given.items()]
    return plan_job(
        CONFIGS / f"{config}.yaml", pairs, here=False, say=lambda _: None, fetch=False
    ).plan


def large(*overrides: str, strategy: str = "auto") -> Plan:
    """Of Llama-2-70B on two nodes of four A100, with the same rows in two copies."""
    return plan(*overrides, config="llama2-70b-pipeline", strategy=strategy)


def test_auto_takes_the_fastest_and_leaves_no_gpu_empty() -> None:
    made = large("parallel.stages=4")
    first = made.candidates[0]
    assert first["chosen"]
    assert first["reason"] == ""
    assert first["empty_gpus"] == 0
    assert made.strategy == first["strategy"] == "pipeline"
    assert made.predicted.tokens_per_s == first["tokens_per_s"]
    speeds = [c["tokens_per_s"] for c in made.candidates if c["fits"]]
    assert max(speeds) <= first["tokens_per_s"] / (1 - ALIKE)


def test_what_is_said_of_the_ways_not_taken() -> None:
    made = plan(config="llama2-70b-sequential", strategy="sequential")
    told = {(c["strategy"], c["stages"], c["tensor"]): c for c in made.candidates}
    own = next(c for c in made.candidates if c["chosen"])
    assert own["strategy"] == made.strategy == "sequential"
    assert "stages wait" in own["reason"]
    assert told[("tensor", 1, 2)]["tokens_per_s"] > own["tokens_per_s"]
    assert all(c["reason"] for c in made.candidates[1:])
    assert sum(c["chosen"] for c in made.candidates) == 1


def test_what_is_nearly_as_fast_is_said_to_be_that() -> None:
    first = large()
    assert first.predicted.tokens_per_s is not None
    slower = first.predicted.tokens_per_s * 0.985
    other = first.model_copy(
        update={"predicted": first.predicted.model_copy(update={"tokens_per_s": slower})}
    )
    assert why(other, first) == "1.5% fewer tokens/s"


def predicted(plan: Plan, tokens_per_s: float) -> Plan:
    return plan.model_copy(
        update={"predicted": plan.predicted.model_copy(update={"tokens_per_s": tokens_per_s})}
    )


def test_of_plans_that_are_about_as_fast_the_one_whose_ranks_share_least() -> None:
    alone = predicted(plan("parallel.replicas=4"), 96.0)
    split = predicted(plan("parallel.stages=4", "parallel.replicas=1", strategy="pipeline"), 100.0)
    assert ranked([split, alone]) == [alone, split]
    assert why(split, alone) == "about as fast, with 4 ranks in a replica instead of 1"
    slower = predicted(alone, 94.0)
    assert ranked([split, slower]) == [split, slower]
    assert why(predicted(alone, 95.5), split) == "4.5% fewer tokens/s"
    less = predicted(split, 95.0)
    assert why(less, alone) == "1.0% fewer tokens/s, with 4 ranks in a replica instead of 1"


@pytest.mark.parametrize(
    ("rows", "writers", "part"),
    [(8, 2, 1.0), (1, 2, 0.5), (9, 2, 0.9), (0, 4, 0.25), (1000, 16, 1000 / 1008)],
)
def test_replicas_that_find_fewer_rows_make_fewer_tokens(
    rows: int, writers: int, part: float
) -> None:
    assert full_part(rows, writers) == pytest.approx(part)


def test_one_row_is_not_made_faster_by_replicas(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"prompt": "1+1="}\n')
    given = f"input.path={tmp_path}/one.jsonl"
    one, four = (plan(given, f"parallel.replicas={n}", strategy="sequential") for n in (1, 4))
    speeds = one.predicted.tokens_per_s, four.predicted.tokens_per_s
    assert speeds[0] == pytest.approx(speeds[1])
    assert (one.rows, four.rows) == (1, 1)
    assert one.predicted.new_tokens == four.predicted.new_tokens


def test_what_does_not_fit_says_what_is_short() -> None:
    made = large("parallel.stages=2", "model.dtype=float32", strategy="pipeline")
    assert not made.fits
    own = next(c for c in made.candidates if c["chosen"])
    assert own["reason"].startswith("does not fit: stage")
    assert made.candidates[0]["fits"]


def test_gpus_that_stay_empty_are_pointed_out() -> None:
    made = large("parallel.stages=2", "parallel.replicas=2", strategy="pipeline")
    own = next(c for c in made.candidates if c["chosen"])
    assert own["empty_gpus"] == 4
    assert own["reason"] == "4 of 8 GPUs stay empty"


def lost(made: Plan, strategy: str) -> str:
    (found,) = (c["reason"] for c in made.candidates if c["strategy"] == strategy)
    return str(found)


@pytest.mark.parametrize(("config", "chosen"), [("demo", "sequential"), ("score", "pipeline")])
def test_fewer_ranks_on_cpus_are_said_to_be_that(config: str, chosen: str) -> None:
    """Two replicas, or two stages, beside one rank."""
    made = plan("resources.device=cpu", config=config, strategy=chosen)
    alone = made.candidates[-1]
    assert (alone["strategy"], alone["ranks"]) == ("sequential", 1)
    assert alone["reason"] == "1 rank at work instead of 2"


def test_what_computes_for_longer_is_said_to_do_that() -> None:
    first = plan("resources.device=cpu", "parallel.replicas=1", strategy="sequential")
    slower = predicted(first, 0.8 * (first.predicted.tokens_per_s or 0.0))
    assert why(slower, first) == "its devices compute 1.25 times as long for as many tokens"
    idle = [d.model_copy(update={"utilization": 0.8 * (d.utilization or 0)}) for d in first.devices]
    unknown = slower.model_copy(update={"devices": idle})
    assert why(unknown, first) == "20.0% fewer tokens/s"


def test_what_streams_says_how_many_gpus_would_do_and_which_stay_empty() -> None:
    given = ("model.path=meta-llama/Llama-2-70b-hf", "model.dtype=bfloat16", "parallel.replicas=1")
    one, two = (
        plan(f"resources.gpus_per_node={gpus}", f"resources.gpu={gpu}", *given)
        for gpus, gpu in ((1, "A100-80GB"), (2, "A100-40GB"))
    )
    assert (one.strategy, one.world_size) == ("streamed", 1)
    assert "2 GPUs like these per replica would do without streaming" in one.reasons
    assert lost(one, "sequential").endswith("2 GPUs like these per replica would do, here it has 1")
    assert (two.strategy, two.world_size) == ("streamed", 1)
    assert "1 GPU of each node stays empty: more replicas would use them" in two.reasons


def test_what_the_spec_says_is_kept() -> None:
    assert plan("parallel.replicas=4").strategy == "sequential"
    assert plan("parallel.stages=2").world_size % 2 == 0
    assert plan("parallel.stages=2").strategy == "pipeline"
    assert plan("parallel.tensor=2", "parallel.stages=1").strategy == "tensor"
    assert plan("parallel.replicas=1", "resources.device=cpu").strategy == "sequential"
    assert plan("parallel.options={device_map: balanced}").strategy == "sequential"
    by_hand = plan("parallel.options={layers: [2, 2, 2, 2]}", "parallel.replicas=1")
    assert by_hand.strategy == "pipeline"
    assert by_hand.world_size == 4


def test_what_no_strategy_can_do() -> None:
    with pytest.raises(SpecError):
        plan("parallel.options={layer: [2, 2, 2, 2]}")
    with pytest.raises(UsageError) as caught:
        plan("parallel.replicas=8")
    assert caught.value.where == "override parallel.replicas=8"
    with pytest.raises(UsageError, match="81 stages can't share") as caught:
        large("parallel.stages=81", strategy="pipeline")
    assert caught.value.where == "override parallel.stages=81"
    with pytest.raises(UsageError) as caught:
        large("resources.nodes=3", strategy="pipeline")
    assert str(caught.value.where).startswith(f"{CONFIGS / 'llama2-70b-pipeline.yaml'}:")
