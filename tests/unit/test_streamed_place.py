"""Strategy streamed: how the plan shares out a budget, what it says of it, and what it refuses."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from launcher.errors import UsageError
from launcher.job.spec import JobSpec
from launcher.plan.budget import FREE_SHARE
from launcher.plan.checkpoint import Checkpoint
from launcher.plan.homes import homes
from launcher.plan.machines import Machines, gpu_profiles
from launcher.plan.plan import Batch, Plan, Streaming
from launcher.plan.sizes import read_size
from launcher.plan.streaming import PUT_S, Draft, Sizes
from launcher.plan.subject import Subject
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
    here: bool = False,
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
    return streamed.place(checkpoint, replace(where, here=here), spec, demand)


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
    batch = {"groups": 1, "slots": 16}
    kept = [streaming(plan(f"{size}GiB", batch=batch)).layers for size in (6, 12, 20)]
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
    made = plan("400GiB")
    assert made.devices[0].capacity_bytes == 24 * GIB
    assert "400.0 GiB are more than a rank's device has: planned with 24.0 GiB" in said(made)
    assert "more than" not in said(plan("20GiB"))


@pytest.mark.parametrize("memory", [0, 4, "800", 2**20 - 1])
def test_memory_without_its_unit(memory: int | str) -> None:
    with pytest.raises(ValidationError, match="should be 1 MiB at least, with a unit"):
        streamed.Options.model_validate({"memory": memory})


def test_gpus_that_stay_empty_and_those_that_would_hold_the_model() -> None:
    made = plan(None, gpus=4)
    assert "3 GPUs of each node stay empty: more replicas would use them" in said(made)
    assert "7 GPUs like these per replica would do without streaming" in said(made)
    assert "stay empty" not in said(plan(None, gpus=4, replicas=4))
    assert "would do" not in said(plan(None, "meta-llama/Llama-3.1-8B", gpus=1))


def test_no_cache_goes_to_a_folder_that_is_in_memory() -> None:
    batch, options = {"slots": 16, "groups": 4}, {"spill_dir": "/dev/shm/spill"}
    refused = plan("12GiB", options=options, batch=batch, here=True)
    assert not refused.fits
    assert "no KV cache goes to /dev/shm/spill, which is in memory" in said(refused)
    assert streaming(plan("12GiB", options=options, here=True)).spilled_bytes == 0
    assert plan("12GiB", options=options, batch=batch).fits  # a node's own may be a disk


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


@pytest.mark.parametrize("free", [8, 64])
def test_free_disk_bounds_what_may_be_spilled_here(
    free: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []
    monkeypatch.setattr(streamed, "room", lambda folder: asked.append(folder) or free * GIB)
    options = {"spill_dir": "/scratch"}
    batch = {"slots": 16, "groups": 4}
    made = plan("12GiB", options=options, batch=batch, here=True)
    assert asked == ["/scratch"]
    if made.fits:
        assert streaming(made).spilled_bytes <= FREE_SHARE * free * GIB
    else:
        assert "no room on the disk (parallel.options.spill_dir)" in said(made)
    assert made.fits == (free == 64)
    assert plan("12GiB", options=options, batch=batch).fits  # a node is asked when its ranks load


def draft_of(dtype: str = "float16", host: int = 400, **changes: Any) -> Draft:
    """Of a model that is float16 in its files: 138 GB, which stay in memory where the ``host`` has twice as many GiB."""
    checkpoint = Checkpoint.known(LLAMA)
    assert checkpoint is not None
    job = {"name": "test", "model": {"path": "a/b", "dtype": dtype}, "input": {"path": "x"}}
    spec = JobSpec.model_validate(job | {"parallel": {"strategy": "streamed", "replicas": 2}})
    machines = changes.pop("machines", Machines("cpu", 1, 0, None, host * GIB))
    subject = Subject(checkpoint, machines, spec, DEMAND)
    batch = Batch(groups=2, slots=8, max_length=512, prefill_chunk=128)
    draft = Draft(subject, Sizes.of(subject), 1.0, batch, buffers=2, kept=2)
    return replace(draft, **changes)


def test_what_memory_has_of_the_files_is_mapped_or_copied_and_the_rest_read() -> None:
    in_place, cast, on_disk = draft_of(), draft_of("float32", host=800), draft_of(host=200)
    rates = in_place.subject.rates
    assert (in_place.in_place, cast.in_place, on_disk.in_place) == (True, False, False)
    putting = PUT_S * (80 + 1)  # layers, and the head
    assert in_place.read_s == pytest.approx(in_place.read_bytes / rates.mapped + putting)
    assert cast.read_s == pytest.approx(cast.read_bytes / rates.cached)
    assert on_disk.read_s == pytest.approx(on_disk.read_bytes / (rates.disk / 2))  # two replicas
    gpu = draft_of(machines=Machines("cuda", 1, 2, gpu_profiles()["RTX-4090"], 400 * GIB))
    assert gpu.read_s == pytest.approx(gpu.read_bytes / rates.cached)
    assert in_place.held(1.0) == (0.0, in_place.read_s, 0.0)  # nobody reads ahead


def test_experts_of_a_layer_are_put_together() -> None:
    known = Checkpoint.known(LLAMA)
    assert known is not None
    assert known.is_plain("float16")
    experts = {name.replace(".mlp.", ".mlp.experts.0."): t for name, t in known.tensors.items()}
    assert not replace(known, tensors=experts).is_plain("float16")


def test_a_sweep_waits_for_weights_that_are_read_slower_than_it_computes() -> None:
    draft = draft_of(host=200)
    slow, quick = draft.held(draft.read_s / 4), draft.held(100 * draft.read_s)
    assert slow.slowed + slow.weights == pytest.approx(0.75 * draft.read_s)
    assert quick.weights == pytest.approx(0.0)
    assert 0 < quick.slowed < draft.read_s  # the reading thread takes the core's time
    assert quick.moved == 0.0
    alone = replace(draft, buffers=1).held(1.0)  # nothing is read ahead
    assert (alone.slowed, alone.weights) == (0.0, pytest.approx(draft.read_s))
    resident = replace(draft, layers=80, head=True)
    assert resident.held(1.0) == (0.0, 0.0, 0.0)


def test_spilled_caches_come_and_go_in_every_sweep() -> None:
    spilled = draft_of(kept=1)
    rates = spilled.subject.rates
    longest = max(map(sum, spilled.subject.work(spilled.batch).lengths))
    grown = -(-longest // 256) * 256 / 512
    assert spilled.held(1.0).moved == pytest.approx(2 * grown * spilled.spilled / rates.cached)
    gpu = draft_of(machines=Machines("cuda", 1, 2, gpu_profiles()["RTX-4090"], 400 * GIB), kept=1)
    moved = 2 * grown * gpu.spilled / gpu.subject.rates.host_link
    assert gpu.held(1.0).moved == pytest.approx(moved)


def test_what_is_predicted_of_a_streamed_run() -> None:
    made = plan("12GiB", gpus=1, batch={"groups": 2, "slots": 16})
    predicted, (device,) = made.predicted, made.devices
    assert predicted.read_bytes_per_token is not None
    assert predicted.load_s is not None
    # Every sweep makes at most one token of each sequence.
    assert predicted.read_bytes_per_token >= made.weights_bytes * 0.9 / 32
    assert device.weights is not None and device.utilization is not None
    assert device.weights > 0.5  # the host's memory can't keep the files
    assert device.utilization + device.weights <= 1.001
    whole = plan(None, "meta-llama/Llama-3.1-8B", demand=Demand(64, 200, 64)).predicted
    assert whole.read_bytes_per_token in (None, 0)


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


def test_the_run_and_its_ranks_load_as_much() -> None:
    for draft in (draft_of(), draft_of(host=200), draft_of(layers=40)):
        replayed = draft.replayed()
        found = streamed._predicted(draft.subject, draft, replayed)
        (home, _) = homes(draft.subject.spec.parallel, draft.subject.machines)
        row = streamed._row(home, draft, 0, replayed)
        assert row.load_s == found.load_s == draft.subject.load_s(draft.loaded)
