"""Where pipelines fit and where not, what is refused, and every family of models."""

from __future__ import annotations

from typing import Any

import pytest
from pipeline_plans import DEMAND, GIB, LLAMA, SMALL, counts, machines, plan, said, spec
from pydantic import ValidationError

from launcher.errors import UsageError
from launcher.job.spec import JobSpec
from launcher.plan.checkpoint import Checkpoint
from launcher.plan.choose import best, used
from launcher.plan.machines import Machines
from launcher.plan.plan import Plan
from launcher.records import Demand
from launcher.strategies import pipeline, sequential


def test_cpu_memory_is_shared_by_the_ranks_of_a_node() -> None:
    made = plan(machines(0, nodes=2), spec(2, replicas=4), "meta-llama/Llama-3.1-8B")
    assert {d.capacity_bytes for d in made.devices} == {50 * GIB}
    assert {d.device for d in made.devices} == {"cpu"}
    assert {p.gpus for p in made.placements} == {()}


def test_too_small_is_told_with_what_would_do() -> None:
    made = plan(machines(4, gpu="A100-40GB"), spec(2))
    assert not made.fits
    assert "stage 0 is" in said(made) or "stage 1 is" in said(made)
    assert "short" in said(made)
    assert "parallel.stages: 4 would do" in said(made)
    assert plan(machines(4, gpu="A100-40GB"), spec(4, batch={"slots": 1})).fits
    wide = plan(machines(4, gpu="A100-40GB"), spec(4, "float32"))
    assert "model.dtype: bfloat16" in said(wide)


def test_slots_that_do_not_fit_are_told_how_many_do() -> None:
    made = plan(machines(4), spec(batch={"slots": 500}))
    assert not made.fits
    most = plan(machines(4), spec()).batch.slots
    assert f"batch.slots: {most} fits" in said(made)


def test_balanced_by_weight_where_balanced_by_time_does_not_fit() -> None:
    """The embedding takes no time, but as much memory as the head."""
    large = {**SMALL, "hidden_size": 4096, "intermediate_size": 8192, "num_hidden_layers": 12}
    large |= {"vocab_size": 256_000, "num_attention_heads": 32, "max_position_embeddings": 512}
    roomy = plan(machines(0, host=64), spec(2), large)
    assert counts(roomy)[0] > counts(roomy)[1]
    peak = max(
        d.peak_bytes
        for d in plan(
            machines(0, host=64), spec(2, layers=[6, 6], batch={"slots": 1}), large
        ).devices
    )
    tight = Machines("cpu", 1, 0, None, 2 * peak + 2**28)
    made = plan(tight, spec(2), large)
    assert made.fits
    assert counts(made) == [6, 6]


def test_gpus_left_over() -> None:
    made = plan(machines(8), spec(2, replicas=3), "meta-llama/Llama-3.1-8B")
    assert made.fits
    assert "2 GPUs of each node stay empty" in said(made)


def test_rows_that_can_not_fill_the_groups() -> None:
    made = plan(machines(4), spec(replicas=1), demand=Demand(3, 500, 16))
    assert made.batch.slots == 1
    assert "3 rows can't fill 4 groups" in said(made)


@pytest.mark.parametrize(
    ("where", "job", "message"),
    [
        (machines(4), spec(8), "which has 4 GPUs"),
        (machines(4), spec(4, replicas=2), "at most 4 stages"),
        (machines(4, nodes=2), spec(3), "evenly over 2 nodes"),
        (machines(8, nodes=2), spec(4, replicas=3), "evenly over 2 nodes"),
        (machines(0), spec(81), "81 stages can't share 80 layers"),
        (machines(4), spec(4, tensor=2), "4 stages x 2 shards are 8 ranks per node"),
        (machines(4), spec(4, layers=[40, 40]), "2 numbers of layers are given for 4 stages"),
        (machines(4), spec(4, layers=[20, 20, 20, 21]), "is 81, but the model has 80"),
    ],
)
def test_what_is_refused(where: Machines, job: JobSpec, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan(where, job)
    assert message in str(caught.value)
    assert caught.value.where
    assert caught.value.fix


def test_model_that_can_not_be_cut() -> None:
    shared = {**SMALL, "num_kv_shared_layers": 2}
    with pytest.raises(UsageError) as caught:
        plan(machines(0), spec(2), shared)
    assert "earlier ones" in str(caught.value)
    assert "sequential" in str(caught.value.fix)


@pytest.mark.parametrize(
    "options", [{"layers": "20,20"}, {"layers": [1.5]}, {"layer": []}, {"device_map": "auto"}]
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        pipeline.Options.model_validate(options)


@pytest.mark.parametrize(
    "name",
    [
        "Qwen/Qwen2.5-72B",
        "Qwen/Qwen3-32B",
        "mistralai/Mixtral-8x22B-v0.1",
        "google/gemma-2-27b",
        "EleutherAI/gpt-neox-20b",
        "microsoft/Phi-3-medium-4k-instruct",
        "mistralai/Mistral-7B-v0.1",
    ],
)
def test_every_family_plans_with_every_schedule(name: str) -> None:
    checkpoint = Checkpoint.known(name)
    assert checkpoint is not None
    for schedule in ("naive", "gpipe", "ring"):
        made = plan(machines(8), spec(8, "auto", schedule=schedule), name)
        assert made.fits, (name, schedule)
        assert sum(counts(made)) == checkpoint.dims.layers
        assert Plan.model_validate_json(made.model_dump_json()) == made


def test_best_plan_uses_the_gpus_that_are_rented() -> None:
    """Where GPUs take turns or stay empty a pipeline is better; on one GPU there is nothing to gain."""
    checkpoint = Checkpoint.known(LLAMA)
    assert checkpoint is not None
    turns = sequential.place(checkpoint, machines(4), spec(1, strategy="sequential"), DEMAND)
    stages = plan(machines(4), spec(4))
    assert used(turns) < 0.5 < used(stages)
    assert best([turns, stages]) is stages
    assert best([stages, turns]) is stages
    one = plan(machines(1), spec(1), "meta-llama/Llama-3.1-8B")
    assert best([turns, one]) is one  # all of the one GPU
    assert best([plan(machines(1), spec(1)), turns]) is turns  # the first does not fit
