"""Strategy pipeline: the plan that it makes, and what it says of it."""

from __future__ import annotations

import pytest
from pipeline_plans import SMALL, counts, machines, plan, said, spec


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
