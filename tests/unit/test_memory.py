"""What a replica takes on its devices, the batch that fits, and how much is in flight."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from launcher.job.spec import JobSpec
from launcher.plan.batching import TEMPLATE_TOKENS, batch_notes, largest_batch
from launcher.plan.checkpoint import Checkpoint
from launcher.plan.dims import Dims
from launcher.plan.machines import Machines, gpu_profiles
from launcher.plan.mapped import MappedReplica, Split
from launcher.plan.memory import RESERVE, Model, activation_bytes, most, shares
from launcher.plan.plan import Batch
from launcher.plan.shapes import known_config
from launcher.plan.sizes import gib, read_size
from launcher.plan.subject import Subject
from launcher.records import Demand

GIB = 2**30
BATCH = Batch(groups=1, slots=16, max_length=2048, prefill_chunk=512)


def model_of(name: str = "meta-llama/Llama-2-70b-hf", width: int = 2) -> Model:
    checkpoint = Checkpoint.known(name)
    assert checkpoint is not None
    return Model(checkpoint.dims, checkpoint.outline(width), width, "sdpa")


def replica(gpus: int, split: Split | None = None, **changes: Any) -> MappedReplica:
    plain = MappedReplica(model_of(), split or Split("sequential"), gpus, 79 * GIB, 200 * GIB)
    return replace(plain, **changes)


def test_golden_kv_cache() -> None:
    assert model_of().kv_bytes_per_token * 100 == 31.25 * 2**20


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"num_key_value_heads": 2}),
        ("qwen3", {"num_key_value_heads": 2, "head_dim": 24}),
        ("gemma2", {"num_key_value_heads": 2, "head_dim": 32}),
        ("gpt_neox", {}),
        ("gpt2", {}),
        ("falcon", {"multi_query": True, "new_decoder_architecture": False}),
        ("deepseek_v3", {"n_routed_experts": 4, "kv_lora_rank": 16, "first_k_dense_replace": 2}),
    ],
)
def test_kv_cache_is_what_the_real_one_takes(kind: str, changes: dict[str, Any]) -> None:
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99}
    sizes |= {"num_key_value_heads": 4} if kind == "deepseek_v3" else {}
    config = AutoConfig.for_model(kind, **(sizes | {"intermediate_size": 96} | changes))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    cache = DynamicCache()
    with torch.no_grad():
        model(torch.arange(5)[None], past_key_values=cache, use_cache=True)
    held = sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))
    dims = Dims.of(config.to_dict())
    assert dims.layers * dims.cached_per_layer * 4 * 5 == held


def test_shares_add_up_to_the_model() -> None:
    model = model_of()
    device_map = replica(4, Split("balanced")).device_map(BATCH)
    found = shares(model, BATCH, device_map, "cuda")
    assert sum(share.weights for share in found.values()) == 137_953_296_384
    assert [n for share in found.values() for n in share.layers] == list(range(80))
    assert sum(share.kv for share in found.values()) == 16 * 2048 * model.kv_bytes_per_token
    assert all(share.reserve == RESERVE["cuda"] for share in found.values())


def test_spilled_layers_are_computed_and_cached_on_the_first_gpu() -> None:
    model = model_of()
    split = Split("sequential", {0: 40 * GIB, 1: 40 * GIB, "cpu": 30 * GIB})
    found = replica(2, split).shares(BATCH)
    assert set(found) == {0, 1, "cpu", "disk"}
    assert found["cpu"].kv == found["disk"].kv == found["disk"].peak - found["disk"].weights == 0
    assert sum(share.kv for share in found.values()) == 16 * 2048 * model.kv_bytes_per_token
    off = len(found["cpu"].layers) + len(found["disk"].layers)
    per_layer = 16 * 2048 * model.kv_bytes_per_layer
    assert found[0].kv == (len(found[0].layers) + off) * per_layer
    layer = model.outline.layers[0].weights
    assert found[0].activations >= layer + activation_bytes(model, BATCH, has_head=False)


def test_head_needs_room_for_logits() -> None:
    model = model_of("meta-llama/Llama-3.1-8B")
    many = BATCH.model_copy(update={"slots": 256, "prefill_chunk": 64, "max_length": 64})
    logits = 256 * 128256 * 4
    assert activation_bytes(model, many, has_head=True) > logits
    assert activation_bytes(model, many, has_head=False) < logits


def test_eager_attention_holds_the_scores() -> None:
    model = model_of("meta-llama/Llama-2-7b-hf")
    scores = 32 * 512 * (2048 + 512) * 4
    eager = activation_bytes(replace(model, attention="eager"), BATCH, has_head=False)
    assert eager >= activation_bytes(model, BATCH, has_head=False) + scores


def test_flash_attention_makes_no_masks_and_repeats_no_heads() -> None:
    flash = replace(model_of(), attention="flash_attention_2")
    for slots, chunk in ((1, 512), (256, 1)):
        batch = BATCH.model_copy(update={"slots": slots, "prefill_chunk": chunk})
        long = batch.model_copy(update={"max_length": 32768})
        found = activation_bytes(flash, long, has_head=False)
        assert found == activation_bytes(flash, batch, has_head=False)
        mask = slots * chunk * 32768 * 2
        assert activation_bytes(model_of(), long, has_head=False) >= found + mask


@pytest.mark.parametrize(
    ("task", "expected"), [("generate", "flash_attention_2"), ("score", "sdpa")]
)
def test_scores_are_planned_as_with_sdpa(task: str, expected: str) -> None:
    checkpoint = Checkpoint.known("meta-llama/Llama-2-70b-hf")
    assert checkpoint is not None
    attention = {"path": "org/model", "attention": "flash_attention_2", "dtype": "bfloat16"}
    asked = JobSpec.model_validate(spec().model_dump() | {"model": attention, "task": task})
    machines = Machines("cuda", 1, 4, gpu_profiles()["A100-80GB"], 200 * GIB)
    subject = Subject(checkpoint, machines, asked, Demand(10, 100, 10))
    assert subject.model.attention == expected


def test_largest_batch_fits_and_one_more_does_not() -> None:
    for rule in ("sequential", "balanced", "balanced_low_0"):
        one = replica(4, Split(rule))
        slots = one.most_slots(BATCH.model_copy(update={"slots": 4096}))
        assert slots > 100
        assert one.fits(BATCH.model_copy(update={"slots": slots}))
        assert not one.fits(BATCH.model_copy(update={"slots": slots + 1}))


def test_what_does_not_fit() -> None:
    short = replica(1)
    assert short.most_slots(BATCH) == 0
    ((share, missing),) = short.overfull(BATCH.model_copy(update={"slots": 1}))
    assert missing == share.peak - 79 * GIB > 50 * GIB
    assert short.gpus_needed(BATCH) == 2
    assert replica(1, gpu_bytes=16 * GIB).gpus_needed(BATCH, at_most=8) is None
    assert replica(1, gpu_bytes=30 * GIB).gpus_needed(BATCH, at_most=8) in (5, 6)


def test_without_a_word_of_spilling_nothing_spills() -> None:
    tight = replica(2, Split("sequential", {0: 30 * GIB, 1: 30 * GIB}))
    assert set(tight.device_map(BATCH).values()) == {0, 1}
    assert not tight.fits(BATCH)


def test_cpu_holds_everything_or_what_max_memory_says() -> None:
    cpu = replica(0, gpu_bytes=0)
    assert cpu.device_map(BATCH) == {"": "cpu"}
    spilled = replica(0, Split("sequential", {"cpu": 8 * GIB}), gpu_bytes=0)
    assert set(spilled.device_map(BATCH).values()) == {"cpu", "disk"}
    assert spilled.shares(BATCH)["cpu"].kv == 16 * 2048 * cpu.model.kv_bytes_per_token


def test_tied_head_is_packed_apart_on_a_cpu() -> None:
    config = {**(known_config("Qwen/Qwen2.5-7B") or {}), "tie_word_embeddings": True}
    tied = Checkpoint.from_config(config)
    model = Model(tied.dims, tied.outline(2), 2, "sdpa")
    head = 152064 * 3584 * 2
    plain = activation_bytes(model, BATCH, has_head=True)
    assert shares(model, BATCH, {"": "cpu"}, "cpu")["cpu"].activations == plain + head


@pytest.mark.parametrize(("limit", "expected"), [(0, 0), (1, 1), (7, 7), (8, 8), (100, 8)])
def test_most(limit: int, expected: int) -> None:
    assert most(1, 8, lambda n: n <= limit) == expected


def spec(replicas: int = 1, **batch: Any) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "test",
            "model": {"path": "org/model"},
            "input": {"path": "prompts.jsonl"},
            "parallel": {"replicas": replicas},
            "batch": batch,
        }
    )


def dims(context: int) -> Dims:
    config = known_config("meta-llama/Llama-2-70b-hf") or {}
    return Dims.of({**config, "max_position_embeddings": context})


def test_batch_follows_the_demand() -> None:
    demand = Demand(rows=1000, longest_prompt_bytes=700, max_new_tokens=100)
    found = largest_batch(spec(), dims(4096), demand, "cuda")
    assert found == Batch(groups=1, slots=256, max_length=800 + TEMPLATE_TOKENS, prefill_chunk=512)
    assert largest_batch(spec(), dims(512), demand, "cuda").max_length == 512
    assert largest_batch(spec(slots=1), dims(256), demand, "cuda").prefill_chunk == 256
    assert largest_batch(spec(), dims(4096), demand, "cpu").slots == 32


def test_no_more_slots_than_rows() -> None:
    demand = Demand(rows=10, longest_prompt_bytes=100, max_new_tokens=10)
    assert largest_batch(spec(), dims(4096), demand, "cuda").slots == 10
    assert largest_batch(spec(replicas=4), dims(4096), demand, "cuda").slots == 3
    assert largest_batch(spec(groups=3), dims(4096), demand, "cuda").slots == 4
    empty = Demand(rows=0, longest_prompt_bytes=0, max_new_tokens=1)
    assert largest_batch(spec(), dims(4096), empty, "cuda").slots == 1


def test_batch_as_asked() -> None:
    demand = Demand(rows=10, longest_prompt_bytes=100, max_new_tokens=10)
    asked = spec(groups=2, slots=77, prefill_chunk=64, max_length=999)
    found = largest_batch(asked, dims(4096), demand, "cpu")
    assert found == Batch(groups=2, slots=77, max_length=999, prefill_chunk=64)
    assert batch_notes(asked, dims(4096)) == []
    assert "512 is taken" in batch_notes(asked, dims(512))[0]
    assert largest_batch(asked, dims(512), demand, "cpu").max_length == 512


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("70GiB", 70 * GIB),
        ("70 GiB", 70 * GIB),
        ("70GB", 70 * 10**9),
        ("1.5MiB", 3 * 2**19),
        ("4g", 4 * 10**9),
        ("123", 123),
        (123, 123),
    ],
)
def test_sizes(text: str | int, expected: int) -> None:
    assert read_size(text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "1e9", "70 GiBs", "nan", "1..2GB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="such as 70GiB"):
        read_size(text)


def test_sizes_for_people() -> None:
    assert gib(137_953_296_384) == "128.5 GiB"
    assert gib(31.25 * 2**20) == "31 MiB"
