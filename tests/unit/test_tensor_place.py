"""Strategy tensor, and pipelines of shards: the plan, its sizes and layout, and what is refused. The library's own plan
is the measure for which tensors are cut."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from models import make_model, small_config

from launcher.errors import PreflightError, UsageError
from launcher.job.spec import JobSpec
from launcher.plan import cuts
from launcher.plan.checkpoint import Checkpoint
from launcher.plan.dims import Dims
from launcher.plan.machines import Machines, gpu_profiles
from launcher.plan.plan import Plan
from launcher.plan.rates import LOADING_S
from launcher.plan.shapes import FAMILIES, parameters
from launcher.plan.shards import Shards, check_shards, degrees
from launcher.records import Demand
from launcher.strategies import pipeline, tensor

GIB = 2**30
DEMAND = Demand(rows=10_000, longest_prompt_bytes=2000, max_new_tokens=256)
LLAMA = "meta-llama/Llama-2-70b-hf"


def machines(gpus: int, nodes: int = 1, gpu: str = "A100-80GB") -> Machines:
    return Machines("cuda", nodes, gpus, gpu_profiles()[gpu], 200 * GIB)


def plan(where: Machines, model: str | dict[str, Any] = LLAMA, **parallel: Any) -> Plan:
    checkpoint = (
        Checkpoint.known(model) if isinstance(model, str) else Checkpoint.from_config(model)
    )
    assert checkpoint is not None
    parallel = {"strategy": "tensor", **parallel}
    spec = JobSpec.model_validate(
        {
            "name": "test",
            "model": {"path": "org/model", "dtype": "bfloat16"},
            "input": {"path": "prompts.jsonl"},
            "parallel": parallel,
        }
    )
    strategy = tensor if parallel["strategy"] == "tensor" else pipeline
    return strategy.place(checkpoint, where, spec, DEMAND)


def said(made: Plan) -> str:
    return "\n".join(made.reasons)


def config(**changes: Any) -> dict[str, Any]:
    base = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 4096,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    }
    return base | changes


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_tensors_are_cut_as_the_library_cuts_them(family: str) -> None:
    """By its plan, read for every tensor of the family; the embedding it leaves whole in some versions."""
    import torch
    from transformers import AutoModelForCausalLM

    from launcher.model import sharding

    made = small_config(family)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(made)
    styles = sharding.styles_of(model, all_heads=False)
    own = parameters(made.to_dict())
    shards = Shards(2)
    for name, parameter in model.named_parameters():
        style = styles.get(name) or styles.get(name.rpartition(".")[0])
        placement = sharding.placement_of(style, name.rpartition(".")[2], parameter)
        expected = list(parameter.shape)
        if placement is not None:
            expected[placement.dim] //= 2  # type: ignore[attr-defined]
        assert own[name] == tuple(parameter.shape)
        assert shards.part(name, own[name]) == tuple(expected), name


def test_seventy_billion_over_four_gpus() -> None:
    made = plan(machines(4), tensor=4)
    assert made.fits
    assert made.weights_bytes == 137_953_296_384
    norms = 161 * 8192 * 2  # two per layer and the last one, in 16 bits, are whole on every rank
    each = (made.weights_bytes - norms) // 4 + norms
    assert [d.weights_bytes for d in made.devices] == [each] * 4
    tokens = made.batch.groups * made.batch.slots * made.batch.max_length
    assert [d.kv_bytes for d in made.devices] == [tokens * made.kv_bytes_per_token // 4] * 4
    assert [(p.stage, p.shard, p.shards, p.layers) for p in made.placements] == [
        (0, shard, 4, (0, 79)) for shard in range(4)
    ]
    assert [p.gpus for p in made.placements] == [(0,), (1,), (2,), (3,)]
    assert made.predicted.bubble == 0
    assert made.predicted.utilization is not None
    assert 0.5 < made.predicted.utilization < 1
    assert made.schedule is None


def test_shards_of_a_stage_are_on_one_node() -> None:
    made = plan(machines(4, nodes=4), strategy="pipeline", stages=2, tensor=4, replicas=2)
    assert (made.world_size, made.ranks_per_node) == (16, 4)
    found = [(p.replica, p.stage, p.shard, p.node) for p in made.placements]
    assert found == [(r // 8, r % 8 // 4, r % 4, r // 4) for r in range(16)]
    assert made.ranks_of(1) == list(range(8, 16))
    assert [(d.stage, d.shard) for d in made.devices[:5]] == [
        (0, 0),
        (0, 1),
        (0, 2),
        (0, 3),
        (1, 0),
    ]
    assert [d.layers for d in made.devices[:8:4]] == [(0, 39), (40, 79)]


def test_a_group_over_nodes_takes_longer() -> None:
    near, far = plan(machines(8), tensor=8), plan(machines(4, nodes=2), tensor=8)
    assert near.predicted.utilization is not None
    assert far.predicted.utilization is not None
    assert far.predicted.utilization < near.predicted.utilization
    assert "cut by columns" not in said(near)
    assert "on 2 nodes, and each of these reads all" in said(far)
    assert "(o_proj, down_proj): 35% more than the checkpoint has" in said(far)


@pytest.mark.parametrize(("nodes", "percent"), [(2, 35), (4, 105)])
def test_what_nodes_of_a_group_read_again_is_in_all_figures(nodes: int, percent: int) -> None:
    near, far = plan(machines(8), tensor=8), plan(machines(8 // nodes, nodes=nodes), tensor=8)
    assert f"{percent}% more than the checkpoint has" in said(far)
    read = [sum(device.bytes_read or 0.0 for device in made.devices) for made in (near, far)]
    assert read[1] / read[0] == pytest.approx(1 + percent / 100, abs=0.005)
    reading = [(made.predicted.load_s or 0.0) - LOADING_S for made in (near, far)]
    assert reading[1] / reading[0] == pytest.approx(read[1] / read[0] / nodes)
    assert {device.load_s for device in far.devices} == {far.predicted.load_s}


def test_heads_that_cannot_be_shared_are_on_every_rank() -> None:
    shared, whole = plan(machines(8), tensor=8), plan(machines(8, nodes=2), tensor=16)
    assert "all of the attention" not in said(shared)
    assert "8 KV heads and 64 heads can't be shared by 16, but by 2, 4 or 8" in said(whole)
    tokens = whole.batch.slots * whole.batch.max_length
    assert whole.devices[0].kv_bytes == tokens * whole.kv_bytes_per_token


def test_fused_projections_leave_all_heads_to_every_rank() -> None:
    made = plan(machines(2), config(model_type="phi3"), tensor=2)
    tokens = made.batch.slots * made.batch.max_length
    assert made.devices[0].kv_bytes == tokens * made.kv_bytes_per_token
    assert "all of the attention" in said(made)


def test_dims_of_a_shard() -> None:
    text = config()
    dims = Dims.of(text)
    part = Shards.of(text, dims, 2).dims(dims)
    assert (part.heads, part.kv_heads, part.mlp_width) == (4, 2, 48)
    assert part.cached_per_layer * 2 == dims.cached_per_layer
    assert Shards.of(text, dims, 1).dims(dims) == dims


def test_what_would_do_where_it_does_not_fit() -> None:
    made = plan(machines(1, gpu="A100-80GB"))
    assert not made.fits
    assert "parallel.tensor: 2 would do" in said(made)


def test_a_family_that_is_not_known_is_planned_with_a_note(tmp_path: Path) -> None:
    checkpoint = Checkpoint.read(make_model(tmp_path, "olmo2"))
    parallel = {"strategy": "tensor", "tensor": 2}
    spec = {"name": "test", "model": {"path": "m"}, "input": {"path": "p"}, "parallel": parallel}
    made = tensor.place(checkpoint, machines(2), JobSpec.model_validate(spec), DEMAND)
    assert "a guess from their names" in said(made)


def test_degrees(tmp_path: Path) -> None:
    checkpoint = Checkpoint.from_config(config(intermediate_size=36))
    assert degrees(checkpoint) == [2, 3, 4, 6, 9, 12, 18, 36]
    assert degrees(Checkpoint.read(make_model(tmp_path, "olmo2"))) == []  # auto takes no guess


def test_the_librarys_plans_are_read_without_it() -> None:
    """For every causal language model that it has: as it says itself, or not at all."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        plan = getattr(CONFIG_MAPPING[kind], "base_model_tp_plan", None) or {}
        assert cuts.cuts_of(kind) in (plan, None), kind
    for kind in FAMILIES:
        assert cuts.why_uncut(cuts.cuts_of(kind) or {}) is None
    assert cuts.cuts_of("nobody_knows") is None


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("stablelm", "no plan"), ("gpt_oss", "no plan"), ("llama4_text", "packed_rowwise")],
)
def test_a_model_that_ranks_would_refuse_is_refused(kind: str, reason: str) -> None:
    made = Checkpoint.from_config(config())
    made = replace(made, config={**made.config, "model_type": kind})
    check_shards(made, 1)
    with pytest.raises(UsageError, match=reason):
        check_shards(made, 2)


@pytest.mark.parametrize(
    ("where", "parallel", "message"),
    [
        (machines(8), {"tensor": 3}, "take 2, 4, 7, 8"),
        (machines(4), {"tensor": 8}, "8 shards are 8 ranks per node, which has 4 GPUs"),
        (machines(4, nodes=3), {"tensor": 4, "replicas": 2}, "evenly over 3 nodes"),
        (machines(4), {"tensor": 2, "stages": 2}, "strategy to pipeline"),
        (machines(4), {"tensor": 2, "schedule": "gpipe"}, "no schedule"),
        (
            machines(6, nodes=2),
            {"strategy": "pipeline", "stages": 3, "tensor": 4},
            "3 stages x 4 shards can't be laid evenly over 2 nodes",
        ),
    ],
)
def test_what_is_refused(where: Machines, parallel: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan(where, **parallel)
    assert message in str(caught.value)
    assert re.match(r"parallel\.\w+", caught.value.where or "")


@pytest.mark.parametrize(
    ("family", "reason"),
    [("gpt2", "no plan"), ("gpt_oss", "no plan"), ("deepseek_v2", "mla_kv_a_proj")],
)
def test_models_whose_parts_are_put_together_otherwise(family: str, reason: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from launcher.model import sharding

    with torch.device("meta"):
        made = AutoConfig.for_model(family, num_hidden_layers=1, vocab_size=64, pad_token_id=0)
        model = AutoModelForCausalLM.from_config(made)
    with pytest.raises(PreflightError, match=reason):
        sharding.styles_of(model, all_heads=False)
