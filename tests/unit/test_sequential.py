"""Strategy sequential: the plan that it makes, what it says of it, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from sequential_plans import GIB, SEVENTY, layers, machines, plan, said, spec

from launcher.errors import UsageError
from launcher.job.spec import JobSpec
from launcher.plan.checkpoint import Checkpoint
from launcher.plan.machines import Machines
from launcher.records import Demand
from launcher.strategies import sequential


def test_golden_float32_over_four_gpus() -> None:
    made = plan(machines(4), spec({"max_memory": SEVENTY}, dtype="float32"))
    assert made.fits
    assert layers(made) == [
        ("cuda:0", (0, 19)),
        ("cuda:1", (20, 40)),
        ("cuda:2", (41, 61)),
        ("cuda:3", (62, 79)),
    ]
    assert made.weights_bytes == 2 * 137_953_296_384
    assert sum(device.weights_bytes for device in made.devices) == made.weights_bytes
    assert made.predicted.utilization == pytest.approx(0.25, abs=0.01)
    assert made.predicted.bubble == pytest.approx(0.75, abs=0.02)
    assert made.schedule == "naive"


def test_golden_bfloat16_leaves_two_rented_gpus_empty_and_says_so() -> None:
    made = plan(machines(4), spec({"max_memory": SEVENTY}))
    assert made.fits
    assert layers(made) == [
        ("cuda:0", (0, 41)),
        ("cuda:1", (42, 79)),
        ("cuda:2", None),
        ("cuda:3", None),
    ]
    assert made.parameters == 68_976_648_192
    assert made.weights_bytes == 137_953_296_384
    assert made.kv_bytes_per_token * 100 == 31.25 * 2**20
    assert "GPUs 2, 3 stay empty" in said(made)
    assert "built-in table" in said(made)


def test_what_ranks_load_is_what_the_table_shows() -> None:
    made = plan(machines(4, nodes=2), spec({"device_map": "balanced"}, replicas=4))
    assert made.fits
    assert (made.world_size, made.ranks_per_node, made.nodes) == (4, 2, 2)
    assert [(p.node, p.gpus) for p in made.placements] == [
        (0, (0, 1)),
        (0, (2, 3)),
        (1, (0, 1)),
        (1, (2, 3)),
    ]
    for placement in made.placements:
        own = [d for d in made.devices if d.rank == placement.rank]
        assert [d.device for d in own] == [f"cuda:{gpu}" for gpu in placement.gpus]
        assert placement.device_map is not None
        for stage, device in enumerate(own):
            assert device.layers is not None
            for layer in device.layers:
                assert placement.device_map[f"model.layers.{layer}"] == stage
    assert all(d.peak_bytes <= (d.capacity_bytes or 0) for d in made.devices)


def test_one_gpu_per_copy_needs_no_split() -> None:
    made = plan(machines(4), spec(replicas=4), "meta-llama/Llama-3.1-8B")
    assert made.fits
    assert {str(p.device_map) for p in made.placements} == {"{'': 0}"}
    assert [p.gpus for p in made.placements] == [(0,), (1,), (2,), (3,)]
    assert made.schedule is None
    assert made.predicted.bubble == 0
    assert made.peak_flops == 312e12
    assert made.peak_bandwidth == 2039e9


def test_too_small_is_told_with_what_would_do() -> None:
    made = plan(machines(1), spec())
    assert not made.fits
    assert "short" in said(made)
    assert "2 GPUs like these per replica would do, here it has 1" in said(made)
    few = plan(machines(1), spec(), demand=Demand(100, 500, 64))
    assert "only 1 slot, since it must hold the longest row" in said(few)
    over = [d for d in made.devices if d.peak_bytes > (d.capacity_bytes or 0)]
    assert [d.device for d in over] == ["cuda:0"]
    assert "model.dtype: bfloat16" in said(plan(machines(1), spec(dtype="float32")))


def test_slots_that_do_not_fit_are_told_how_many_do() -> None:
    made = plan(machines(2), spec(batch={"slots": 500}))
    assert not made.fits
    assert made.batch.slots == 500
    best = plan(machines(2), spec()).batch.slots
    assert f"batch.slots: {best} fits" in said(made)
    assert plan(machines(2), spec(batch={"slots": best})).fits


def test_copies_are_proposed_where_gpus_take_turns() -> None:
    made = plan(machines(8), spec())
    assert "parallel.replicas: 4" in said(made)
    assert "take turns" in said(made)
    assert "take turns" not in said(plan(machines(1), spec(), "meta-llama/Llama-3.1-8B"))


def test_gpus_left_over_by_the_replicas() -> None:
    made = plan(machines(8), spec(replicas=3), "meta-llama/Llama-3.1-8B")
    assert [p.gpus for p in made.placements] == [(0, 1), (2, 3), (4, 5)]
    assert "2 GPUs of each node stay empty" in said(made)


def test_spilling_only_where_it_is_asked_for() -> None:
    asked = plan(machines(1), spec({"max_memory": {0: "60GiB", "cpu": "150GiB"}}))
    assert asked.fits
    assert [d.device for d in asked.devices] == ["cuda:0", "cpu"]
    assert "stay in the CPU's memory" in said(asked)
    main, spilled = asked.devices
    assert main.utilization is not None
    assert main.weights is not None
    assert 0.5 < main.weights < 1 - main.utilization  # 70 GiB come over the link for every step
    assert spilled.utilization is None
    further = plan(machines(1), spec({"max_memory": {"cuda:0": "60GiB", "cpu": "40GiB"}}))
    assert [d.device for d in further.devices] == ["cuda:0", "cpu", "disk"]
    assert further.devices[2].capacity_bytes is None
    assert "on disk" in said(further)


def test_cpu() -> None:
    made = plan(machines(0), spec(replicas=2), "meta-llama/Llama-3.1-8B")
    assert made.fits
    assert made.device == "cpu"
    assert [(p.gpus, p.device_map) for p in made.placements] == [((), None), ((), None)]
    assert [(d.device, d.capacity_bytes) for d in made.devices] == [("cpu", 100 * GIB)] * 2
    assert made.predicted.utilization == pytest.approx(1, abs=0.01)
    assert not plan(machines(0), spec()).fits or made.devices[0].peak_bytes < 200 * GIB


def test_cpu_with_layers_on_disk_ignores_what_is_said_of_gpus() -> None:
    job = spec({"max_memory": {0: "70GiB", "cpu": "8GiB"}}, batch={"slots": 2})
    made = plan(machines(0, host=32), job)
    assert made.fits
    assert [d.device for d in made.devices] == ["cpu", "disk"]
    device_map = made.placements[0].device_map
    assert device_map is not None
    assert set(device_map.values()) == {"cpu", "disk"}
    assert not plan(machines(0, host=32), spec()).fits


def test_map_by_hand() -> None:
    by_hand = {
        "model.embed_tokens": 0,
        **{f"model.layers.{index}": "cuda:1" if index > 39 else 0 for index in range(80)},
        "model.norm": "1",
        "lm_head": 1,
    }
    made = plan(machines(2), spec({"device_map": by_hand}))
    assert made.fits
    assert layers(made) == [("cuda:0", (0, 39)), ("cuda:1", (40, 79))]
    assert not plan(machines(2), spec({"device_map": {"": 0}})).fits


@pytest.mark.parametrize(
    ("where", "job", "message"),
    [
        (machines(4), spec(stages=2), "set parallel.strategy to pipeline"),
        (machines(4), spec(schedule="gpipe"), "parallel.schedule"),
        (machines(4), spec(tensor=2), "set parallel.strategy to tensor"),
        (machines(4, nodes=2), spec(), "multiple of resources.nodes"),
        (machines(4, nodes=2), spec(replicas=3), "multiple of resources.nodes"),
        (machines(4), spec(replicas=8), "at most 4 replicas"),
        (machines(2), spec({"max_memory": {2: "70GiB"}}), "a replica has 2"),
        (machines(2), spec({"device_map": {"": 2}}), "a replica has 2"),
        (machines(0), spec({"device_map": {"": 0}}), "a replica has 0"),
        (machines(2), spec({"device_map": {"model": 0, "head": 1}}), "did you mean lm_head"),
        (machines(2), spec({"no_split": ["LlamaLayer"]}), "LlamaDecoderLayer"),
    ],
)
def test_what_is_refused(where: Machines, job: JobSpec, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan(where, job)
    assert message in str(caught.value)
    assert caught.value.where


@pytest.mark.parametrize(
    "options",
    [
        {"offload_dir": "offload"},
        {"device_map": "sequentiall"},
        {"device_map": {"model": "gpu0"}},
        {"device_map": {"model": -1}},
        {"max_memory": {0: "lots"}},
        {"max_memory": {0: -5}},
        {"max_memory": {"tpu": "5GiB"}},
        {"no_split": "LlamaDecoderLayer"},
        {"nosplit": []},
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        sequential.Options.model_validate(options)


def test_numbers_of_gpus_however_they_are_written() -> None:
    read = sequential.Options.model_validate({"max_memory": {"0": "1GiB", "cuda:1": 5, "cpu": 7}})
    assert read.max_memory == {0: GIB, 1: 5, "cpu": 7}
    again = sequential.Options.model_validate(read.model_dump(mode="json"))
    assert again == read


def test_dtype_is_resolved_and_slow_ones_are_told() -> None:
    assert plan(machines(2), spec(dtype="auto")).dtype == "float16"
    slow = plan(machines(8, gpu="V100-32GB"), spec())
    assert slow.dtype == "bfloat16"
    assert "V100-32GB" in said(slow)
    assert slow.peak_flops is None


def test_every_family_plans_over_every_rule() -> None:
    names = (
        "Qwen/Qwen2.5-72B",
        "Qwen/Qwen3-32B",
        "mistralai/Mixtral-8x22B-v0.1",
        "google/gemma-2-27b",
        "EleutherAI/gpt-neox-20b",
        "microsoft/Phi-3-medium-4k-instruct",
        "mistralai/Mistral-7B-v0.1",
    )
    for name in names:
        for rule in ("sequential", "auto", "balanced", "balanced_low_0"):
            made = plan(machines(8), spec({"device_map": rule}), name)
            assert made.fits, (name, rule)
            assert all(d.peak_bytes <= (d.capacity_bytes or 0) for d in made.devices)
            checkpoint = Checkpoint.known(name)
            assert checkpoint is not None
            numbers = [d.layers for d in made.devices if d.layers]
            assert numbers[0][0] == 0
            assert numbers[-1][1] == checkpoint.dims.layers - 1


def test_one_row_that_fits_in_no_slot_is_that_rows_error_not_the_runs_end() -> None:
    one_long = Demand(rows=1000, longest_prompt_bytes=500_000, max_new_tokens=256)
    found = plan(
        machines(1, gpu="RTX-4090"), spec(), "meta-llama/Llama-3.1-8B-Instruct", demand=one_long
    )
    assert found.fits
    assert 2048 <= found.batch.max_length < 131072
    assert any("too_long" in reason for reason in found.reasons)
