"""Strategy streamed: how the plan shares out a budget, what it says of it, and what it refuses."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import ValidationError

from launcher.errors import UsageError
from launcher.job.spec import JobSpec
from launcher.plan.checkpoint import Checkpoint
from launcher.plan.machines import Machines, gpu_profiles
from launcher.plan.plan import Plan, Streaming
from launcher.plan.sizes import read_size
from launcher.records import Demand
from launcher.strategies import streamed

GIB = 2**30
LLAMA = "meta-llama/Llama-2-70b-hf"
LAYER = 1_711_308_800  # bytes of one layer in 16 bit: 1.59 GiB
DEMAND = Demand(rows=1000, longest_prompt_bytes=500, max_new_tokens=64)


def plan(
    memory: str | None,
    model: str = LLAMA,
    gpus: int = 0,
    demand: Demand = DEMAND,
    batch: dict[str, Any] | None = None,
    **parallel: Any,
) -> Plan:
    options = parallel.pop("options", {}) | ({"memory": memory} if memory else {})
    spec = JobSpec.model_validate(
        {
            "name": "test",
            "model": {"path": "org/model", "dtype": "bfloat16"},
            "input": {"path": "prompts.jsonl"},
            "parallel": {"strategy": "streamed", "options": options, **parallel},
            "batch": batch or {},
        }
    )
    gpu = gpu_profiles()["RTX-4090"]
    where = (
        Machines("cuda", 1, gpus, gpu, 64 * GIB) if gpus else Machines("cpu", 1, 0, None, 24 * GIB)
    )
    checkpoint = Checkpoint.known(model)
    assert checkpoint is not None
    return streamed.place(checkpoint, where, spec, demand)


def streaming(made: Plan) -> Streaming:
    found = made.placements[0].streaming
    assert found is not None
    return found


def said(made: Plan) -> str:
    return "\n".join(made.reasons)


@pytest.mark.parametrize("gpus", [0, 1])
def test_seventy_billion_in_four_gibibytes(gpus: int) -> None:
    made = plan("4GiB", gpus=gpus)
    assert made.fits, made.reasons
    assert made.weights_bytes == 137_953_296_384
    assert made.devices[0].peak_bytes <= 4 * GIB
    assert LAYER <= made.devices[0].weights_bytes <= 2.2 * LAYER
    assert made.batch.groups * made.batch.slots >= 32
    assert streaming(made).layers == 0
    assert "per token" in said(made)


def test_memory_that_is_left_over_keeps_layers() -> None:
    kept = [streaming(plan(f"{size}GiB")).layers for size in (6, 12, 20)]
    assert kept[0] < kept[1] < kept[2]
    assert kept[2] >= 6


def test_model_that_fits_is_not_streamed() -> None:
    made = plan(None, "meta-llama/Llama-3.1-8B", demand=Demand(64, 200, 64))
    assert made.placements[0].streaming is None
    assert made.batch.slots == 32
    assert "nothing is streamed" in said(made)


def test_reading_ahead_is_bought_where_there_is_room() -> None:
    assert streaming(plan("12GiB")).buffers == 2
    assert streaming(plan("12GiB", options={"prefetch": 3})).buffers == 4
    assert streaming(plan("12GiB", options={"prefetch": 0})).buffers == 1


def test_budget_that_is_too_small_names_the_smallest() -> None:
    refused = plan("2GiB", batch={"slots": 4, "max_length": 256})
    assert not refused.fits
    match = re.search(r"the smallest that works is (\S+ GiB)", said(refused))
    assert match, refused.reasons
    size = read_size(match[1])
    assert size >= LAYER
    assert plan(f"{size}", batch={"slots": 4, "max_length": 256}).fits
    assert not plan(f"{size * 95 // 100}", batch={"slots": 4, "max_length": 256}).fits


def test_more_memory_than_there_is_is_not_planned_with() -> None:
    assert plan("400GiB").devices[0].capacity_bytes == 24 * GIB


@pytest.mark.parametrize(("gpus", "place"), [(0, "on disk"), (1, "in the host's memory")])
def test_cache_that_finds_no_room(gpus: int, place: str) -> None:
    made = plan("6GiB", gpus=gpus, batch={"slots": 4, "groups": 8})
    found = streaming(made)
    assert (made.batch.groups, made.batch.slots) == (8, 4)
    assert found.groups < 8
    per_group = 4 * made.batch.max_length * made.kv_bytes_per_token
    assert found.spilled_bytes == (8 - found.groups) * per_group
    assert f"are kept {place}" in said(made)


def test_host_memory_bounds_what_a_gpu_may_spill() -> None:
    made = plan("20GiB", gpus=1, demand=Demand(100_000, 500, 64))
    assert made.fits
    assert streaming(made).spilled_bytes <= 32 * GIB
    refused = plan("6GiB", gpus=1, batch={"slots": 16, "groups": 64})
    assert not refused.fits
    assert "batch.groups" in said(refused)


def test_few_rows_make_a_small_batch() -> None:
    made = plan("8GiB", demand=Demand(5, 500, 64))
    assert made.batch.groups * made.batch.slots <= 8


def test_replicas_share_the_machine() -> None:
    made = plan(None, replicas=2)
    assert made.world_size == 2
    assert [device.capacity_bytes for device in made.devices] == [12 * GIB] * 2


def test_stages_and_shards_are_refused() -> None:
    for name in ("stages", "tensor"):
        with pytest.raises(UsageError, match=f"no {name}"):
            plan("8GiB", **{name: 2})


def test_models_that_can_not_be_taken_apart_are_refused() -> None:
    checkpoint = Checkpoint.known(LLAMA)
    assert checkpoint is not None
    config = {**checkpoint.config, "is_encoder_decoder": True}
    other = Checkpoint(config, checkpoint.tensors, "here")
    spec = JobSpec.model_validate(
        {
            "name": "test",
            "model": {"path": "a/b"},
            "input": {"path": "x"},
            "parallel": {"strategy": "streamed"},
        }
    )
    with pytest.raises(UsageError, match="can't be streamed: it has an encoder"):
        streamed.place(other, Machines("cpu", 1, 0, None, 24 * GIB), spec, DEMAND)


@pytest.mark.parametrize(
    "options", [{"memory": "lots"}, {"prefetch": -1}, {"spill_dir": "here"}, {"memmory": 1}]
)
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        streamed.Options.model_validate(options)
