"""Strategy pipeline: the plan that it makes, what it says of it, and what it refuses."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from pydantic import ValidationError

from launcher.errors import UsageError
from launcher.job.spec import JobSpec
from launcher.plan.checkpoint import Checkpoint
from launcher.plan.choose import best, used
from launcher.plan.machines import Machines, gpu_profiles
from launcher.plan.plan import Plan
from launcher.records import Demand
from launcher.strategies import pipeline, sequential

GIB = 2**30
DEMAND = Demand(rows=10_000, longest_prompt_bytes=2000, max_new_tokens=256)
LLAMA = "meta-llama/Llama-2-70b-hf"
SMALL = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "vocab_size": 4096,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}


def machines(gpus: int, nodes: int = 1, gpu: str = "A100-80GB", host: int = 200) -> Machines:
    if not gpus:
        return Machines("cpu", nodes, 0, None, host * GIB)
    return Machines("cuda", nodes, gpus, gpu_profiles()[gpu], host * GIB)


def spec(
    stages: int = 4,
    dtype: str = "bfloat16",
    batch: dict[str, Any] | None = None,
    layers: list[int] | None = None,
    **parallel: Any,
) -> JobSpec:
    options = {} if layers is None else {"layers": layers}
    return JobSpec.model_validate(
        {
            "name": "test",
            "model": {"path": "org/model", "dtype": dtype},
            "input": {"path": "prompts.jsonl"},
            "parallel": {
                "strategy": "pipeline",
                "stages": stages,
                "options": options,
                **parallel,
            },
            "batch": batch or {},
        }
    )


def plan(
    where: Machines,
    job: JobSpec,
    model: str | dict[str, Any] = LLAMA,
    demand: Demand = DEMAND,
) -> Plan:
    checkpoint = (
        Checkpoint.known(model) if isinstance(model, str) else Checkpoint.from_config(model)
    )
    assert checkpoint is not None
    return pipeline.place(checkpoint, where, job, demand)


def counts(made: Plan) -> list[int]:
    """Layers of each stage of the first replica; they follow one another from the first to the last."""
    spans = [d.layers for d in made.devices if d.replica == 0]
    assert all(spans)
    found = [span for span in spans if span]
    assert found[0][0] == 0
    assert all(here[1] + 1 == there[0] for here, there in itertools.pairwise(found))
    return [last - first + 1 for first, last in found]


def said(made: Plan) -> str:
    return "\n".join(made.reasons)


def test_seventy_billion_over_four_gpus() -> None:
    made = plan(machines(4), spec())
    assert made.fits
    assert counts(made) == [20, 20, 20, 20]
    assert made.batch.groups == 4
    assert made.batch.slots > 16
    assert made.schedule == "ring"
    assert [d.device for d in made.devices] == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
    assert sum(d.weights_bytes for d in made.devices) == made.weights_bytes == 137_953_296_384
    assert all(d.peak_bytes <= (d.capacity_bytes or 0) for d in made.devices)
    assert made.predicted.utilization is not None
    assert made.predicted.utilization > 0.95


def test_cache_is_of_a_stages_own_layers_for_all_groups() -> None:
    made = plan(machines(4), spec(batch={"groups": 6, "slots": 10, "max_length": 1000}))
    for device, layers in zip(made.devices, counts(made), strict=True):
        assert device.kv_bytes == layers * 6 * 10 * 1000 * made.kv_bytes_per_token // 80


def test_what_ranks_load_is_what_the_table_shows() -> None:
    made = plan(machines(4, nodes=2), spec(stages=2, replicas=4))
    assert (made.world_size, made.ranks_per_node, made.nodes) == (8, 4, 2)
    for rank, (placement, device) in enumerate(zip(made.placements, made.devices, strict=True)):
        assert placement.rank == device.rank == rank
        assert (placement.replica, placement.stage) == divmod(rank, 2)
        assert (device.replica, device.stage) == divmod(rank, 2)
        assert placement.layers == device.layers
        assert placement.gpus == (rank % 4,)
        assert device.device == f"cuda:{rank % 4}"
        assert placement.node == rank // 4
        assert placement.device_map is None
    assert made.ranks_of(3) == [6, 7]


@pytest.mark.parametrize(
    ("gpus", "nodes", "stages", "replicas", "homes"),
    [
        (8, 1, 4, 2, [0] * 8),
        (4, 2, 4, 2, [0] * 4 + [1] * 4),  # a replica stays in a node where it fits
        (4, 2, 8, 1, [0] * 4 + [1] * 4),
        (2, 4, 4, 2, [0, 0, 1, 1, 2, 2, 3, 3]),
        (8, 2, 2, 2, [0, 0, 1, 1]),
    ],
)
def test_ranks_over_nodes(
    gpus: int, nodes: int, stages: int, replicas: int, homes: list[int]
) -> None:
    made = plan(machines(gpus, nodes), spec(stages, replicas=replicas))
    assert [placement.node for placement in made.placements] == homes


def test_links_between_nodes_are_slower() -> None:
    near = plan(machines(8), spec(8))
    far = plan(machines(1, nodes=8), spec(8))
    assert counts(near) == counts(far)
    assert near.predicted.utilization is not None
    assert far.predicted.utilization is not None
    assert far.predicted.utilization < near.predicted.utilization


@pytest.mark.parametrize(
    ("schedule", "least", "most"), [("naive", 0.2, 0.25), ("gpipe", 0.5, 4 / 7), ("ring", 0.95, 1)]
)
def test_schedules_are_predicted(schedule: str, least: float, most: float) -> None:
    made = plan(machines(4), spec(schedule=schedule))
    predicted = made.predicted
    assert predicted.utilization is not None
    assert predicted.bubble is not None
    assert least < predicted.utilization <= most + 0.005
    assert predicted.utilization + predicted.bubble <= 1 + 1e-9
    busy = [device.utilization or 0 for device in made.devices]
    assert sum(busy) / 4 == pytest.approx(predicted.utilization)
    assert made.batch.groups == (1 if schedule == "naive" else 4)
    assert made.schedule == schedule


def test_schedule_is_one_word_whatever_the_groups() -> None:
    made = plan(machines(4), spec(schedule="naive", batch={"groups": 4}))
    assert made.batch.groups == 1
    assert "batch.groups: 4 is not used" in said(made)
    assert "take turns" in said(made)
    few = plan(machines(4), spec(batch={"groups": 2}))
    assert few.predicted.utilization == pytest.approx(0.5, abs=0.02)
    assert "batch.groups: 4 can" in said(few)


def test_links_that_take_long_are_hidden_by_more_groups() -> None:
    """Stages of a tiny model take less time than a message between two of its processes."""
    assert plan(machines(0), spec(2), SMALL).batch.groups == 4
    assert plan(machines(4), spec(4)).batch.groups == 4


def test_more_groups_where_they_cost_no_slots() -> None:
    asked = plan(machines(4), spec(batch={"slots": 8}))
    assert (asked.batch.groups, asked.batch.slots) == (8, 8)
    short_of_memory = plan(machines(4), spec())
    assert short_of_memory.batch.groups == 4
    assert plan(machines(4), spec(schedule="gpipe", batch={"slots": 8})).batch.groups == 4


def test_embedding_and_head_are_counted() -> None:
    """Vocabulary and layers of a size: the last stage has the head, so it gets fewer layers."""
    large = {**SMALL, "hidden_size": 1024, "intermediate_size": 4096, "vocab_size": 64_000}
    made = plan(machines(0), spec(2, "float32"), large)
    first, last = counts(made)
    assert first > last
    by_hand = plan(machines(0), spec(2, "float32", layers=[4, 4]), large)
    assert counts(by_hand) == [4, 4]
    assert (made.predicted.utilization or 0) > (by_hand.predicted.utilization or 1)
    assert "stage 1 takes longest" in said(by_hand)


def test_tied_embedding_is_held_by_both_ends() -> None:
    tied = {**SMALL, "tie_word_embeddings": True}
    embedding = 4096 * 64 * 4
    whole = plan(machines(0), spec(1, "float32"), tied)
    assert sum(d.weights_bytes for d in whole.devices) == whole.weights_bytes
    cut = plan(machines(0), spec(2, "float32"), tied)
    assert cut.weights_bytes == whole.weights_bytes
    assert sum(d.weights_bytes for d in cut.devices) == whole.weights_bytes + embedding
    assert min(d.weights_bytes for d in cut.devices) > embedding
    untied = plan(machines(0), spec(2, "float32"), SMALL)
    assert [d.weights_bytes for d in untied.devices] == [d.weights_bytes for d in cut.devices]


def test_stages_pass_messages_that_take_memory() -> None:
    ends = plan(machines(4), spec(3, batch={"slots": 8}), "meta-llama/Llama-3.1-8B")
    message = max(ends.batch.slots, ends.batch.prefill_chunk) * 4096 * 2
    first, middle, _ = ends.devices
    groups = ends.batch.groups
    assert middle.activation_bytes - first.activation_bytes == 2 * message
    assert first.activation_bytes > groups * message


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
