"""Figures that times follow from: measured, of a data sheet, or assumed; and what a step costs by them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_memory import model_of

from launcher.plan.cost import Exchange, StageCost, layer_costs, usual_load
from launcher.plan.course import Load
from launcher.plan.machines import Machines, gpu_profiles
from launcher.plan.measured import Costs, Line, MachineProfile, Speed
from launcher.plan.memory import Model
from launcher.plan.outline import Module
from launcher.plan.plan import Batch
from launcher.plan.rates import REACHED_BANDWIDTH, REACHED_FLOPS, WHOLE_OVER_PARTS, Rates
from launcher.plan.shards import Shards
from launcher.plan.workload import Workload

A100 = gpu_profiles()["A100-80GB"]
GPUS = Machines("cuda", 1, 4, A100, 2**38)
CPUS = Machines("cpu", 1, 0, None, 2**36)
COSTS = Costs(
    matmul={1: 1e10, 10: 5e10, 100: 1e11},
    pass_s=1e-3,
    layer_s=1e-3,
    row_s=1e-5,
    width_s=1e-9,
    decode_s=2e-10,
    prefill_s=1e-10,
)


def speed(device: str, ranks: int) -> Speed:
    costs = {"float32": COSTS}
    return Speed(
        device=device, ranks=ranks, threads=1, memory=1e10, mapped=9e10 / ranks, costs=costs
    )


PROFILE = MachineProfile(
    kind="a CPU",
    host="node7",
    measured=1.0,
    software="torch",
    speeds=[speed("cpu", 1), speed("cpu", 2), speed("NVIDIA A100-SXM4-80GB", 1)],
    step_s=1e-4,
    start_s=9.0,
    loading_s=2.0,
    backend="gloo",
    link=Line(latency_s=1e-5, bytes_per_s=3e9),
    all_reduce=Line(latency_s=2e-5, bytes_per_s=1e9),
    gather=Line(latency_s=3e-5, bytes_per_s=1e9),
    disk=5e8,
    cached=5e9,
)


def test_rates_say_where_they_are_from() -> None:
    assert Rates.of(CPUS, "float32").source == "assumed"
    assert Rates.of(GPUS, "bfloat16").source == "the data sheet of A100-80GB"
    assert Rates.of(GPUS, "int4").source == "assumed"
    there = replace(CPUS, profile=PROFILE)
    assert Rates.of(there, "float32").source == "measured on node7"
    assert Rates.of(there, "bfloat16").source == "assumed"  # not measured in that
    assert Rates.of(replace(GPUS, profile=PROFILE), "float32").source == "measured on node7"
    other = replace(GPUS, gpu=gpu_profiles()["H100"], profile=PROFILE)
    assert Rates.of(other, "float32").source == "the data sheet of H100"


def test_roofline_of_a_data_sheet() -> None:
    rates = Rates.of(GPUS, "bfloat16")
    elements, size = 1e9, 2e9
    reading = size / (REACHED_BANDWIDTH * 2.039e12)
    assert rates.product_s(elements, size, 1) == pytest.approx(reading)
    computing = 2 * elements * 4096 / (REACHED_FLOPS * 312e12)
    assert rates.product_s(elements, size, 4096) == pytest.approx(computing)
    assert rates.product_s(0, 0, 7) == 0


def test_measured_products_between_and_beyond_what_was_measured() -> None:
    rates = Rates.of(replace(CPUS, profile=PROFILE), "float32")

    def per_element(rows: float) -> float:
        return rates.product_s(1e9, 4.0, rows) / 1e9

    assert per_element(1) == pytest.approx(2 / 1e10)
    assert per_element(0.5) == pytest.approx(2 / 1e10)  # the weights are read for half a row, too
    assert per_element(10) == pytest.approx(20 / 5e10)
    assert per_element(5.5) == pytest.approx((2 / 1e10 + 20 / 5e10) / 2)
    assert per_element(1000) == pytest.approx(10 * 200 / 1e11)
    assert (
        rates.product_s(1, 1e10, 1) == 1.0
    )  # experts are read whole, however few tokens visit them


def test_a_step_is_its_layers_and_the_head() -> None:
    model, rates = model_of(), Rates.of(GPUS, "bfloat16")
    load = Load(rows=64, decoding=64, positions=64 * 500, fed=100, seen=100 * 200)
    layers = model.outline.layers
    whole, other = StageCost.of(model, layers, rates, has_head=True)(load)
    assert other == 0
    costs = layer_costs(model, load, rates)
    assert len(costs) == 80
    assert sum(costs) == pytest.approx(whole)
    assert costs[-1] > costs[0] == costs[40]
    halves = [layers[:40], layers[40:]]
    parts = [
        StageCost.of(model, half, rates, has_head=half is halves[1])(load)[0] for half in halves
    ]
    assert sum(parts) == pytest.approx(whole)
    # Reading all weights once is the least that it can take.
    assert whole > model.outline.root.weights * 0.98 / (REACHED_BANDWIDTH * 2.039e12)


def test_ranks_that_share_layers_exchange_hidden_states_twice_per_layer() -> None:
    model, rates = model_of(), Rates.of(GPUS, "bfloat16")
    layers: list[Module] = model.outline.layers[:10]
    line = Line(latency_s=1e-3, bytes_per_s=1e9)
    cost = StageCost.of(model, layers, rates, exchange=Exchange(2, line, line))
    load = Load(rows=8, decoding=8, positions=800, fed=0, seen=0)
    assert cost(load)[1] == pytest.approx(2 * 10 * (1e-3 + 8 * 8192 * 2 / 1e9))
    assert cost.link_s(load, line, last=False) == pytest.approx(1e-3 + 8 * 8192 * 2 / 1e9)
    assert cost.link_s(load, line, last=True) == pytest.approx(1e-3, rel=1e-3)


def test_ranks_that_cannot_share_the_heads_put_their_projections_together_too() -> None:
    model, rates = model_of(), Rates.of(GPUS, "bfloat16")
    layers: list[Module] = model.outline.layers[:10]
    dims, config = model.dims, {"model_type": "llama"}
    shared, whole = (Shards.of(config, dims, count).gathered(dims) for count in (8, 3))
    assert shared == []
    assert whole == [8192, 1024, 1024]
    assert Shards.of({"model_type": "phi3"}, dims, 2).gathered(dims) == [10240, 2 * 28672]
    sums, gather = Line(latency_s=1e-3, bytes_per_s=1e9), Line(latency_s=2e-3, bytes_per_s=1e9)
    exchange = Exchange(3, sums, gather, tuple(2 * width for width in whole))
    load = Load(rows=8, decoding=8, positions=800, fed=0, seen=0)
    plain = StageCost.of(model, layers, rates, exchange=Exchange(3, sums, gather))(load)[1]
    gathered = StageCost.of(model, layers, rates, exchange=exchange)(load)[1] - plain
    assert gathered == pytest.approx(10 * (3 * 2e-3 + 8 * 2 * 10240 / 1e9))


def test_a_layer_by_itself_takes_a_pass_of_its_own() -> None:
    model, rates = model_of(), Rates.of(replace(CPUS, profile=PROFILE), "float32")
    load = Load(rows=8, decoding=8, positions=800, fed=0, seen=0)
    cost = StageCost.of(model, model.outline.layers[:10], rates)
    each = replace(cost, passes=10)(load)[0] - cost(load)[0]
    assert each == pytest.approx(9 * COSTS.pass_s * WHOLE_OVER_PARTS)


def test_usual_load_brings_as_many_prompts_as_rows_end() -> None:
    work = Workload(((100, 50),), 1000)
    batch = Batch(groups=1, slots=10, max_length=200, prefill_chunk=500)
    load = usual_load(work, batch)
    assert load.decoding == 10
    assert load.positions == 10 * 125
    assert load.fed == pytest.approx(10 / 50.2 * 100)


def test_experts_that_no_token_visits_cost_no_arithmetic() -> None:
    mixtral: Model = model_of("mistralai/Mixtral-8x7B-v0.1")
    rates = Rates.of(GPUS, "bfloat16")
    cost = StageCost.of(mixtral, mixtral.outline.layers, rates)
    assert cost.elements < 0.35 * cost.size / 2  # two of eight
