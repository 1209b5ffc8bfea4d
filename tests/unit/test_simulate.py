"""The simulated pipeline: what arithmetic says of equal stages, and unequal ones worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.plan.simulate import Pipe, Schedule, simulate

SCHEDULES: tuple[Schedule, ...] = ("naive", "gpipe", "ring")


def pipe(stage_s: list[float], groups: int, schedule: Schedule, link_s: float = 0.0) -> Pipe:
    return Pipe(stage_s, [link_s] * len(stage_s), groups, schedule)


def closed_form(schedule: Schedule, stages: int, groups: int) -> float:
    """Utilisation of equal stages whose links take no time."""
    if schedule == "naive":
        return 1 / stages
    return groups / (groups + stages - 1) if schedule == "gpipe" else min(1.0, groups / stages)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("stages", [1, 2, 4, 8])
@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_equal_stages(schedule: Schedule, stages: int, groups: int) -> None:
    found = simulate(pipe([0.01] * stages, groups, schedule))
    expected = closed_form(schedule, stages, groups)
    assert found.utilization == pytest.approx(expected)
    assert found.bubble == pytest.approx(1 - expected)
    for stage in found.stages:
        assert stage.busy == pytest.approx(expected)
        assert stage.transfer == 0


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("groups", [1, 2, 3, 5, 9])
def test_shares_add_up(schedule: Schedule, groups: int) -> None:
    found = simulate(Pipe([3.0, 1.0, 2.0, 5.0], [0.5, 0.1, 2.5, 0.3], groups, schedule))
    for stage in found.stages:
        parts = (stage.busy, stage.transfer, stage.bubble, stage.host_gap)
        assert sum(parts) == pytest.approx(1)
        assert min(parts) >= -1e-12


@pytest.mark.parametrize(
    ("schedule", "groups", "rounds", "seconds", "busy"),
    [
        # One stage after the other, 6 s for each of 2 x 3 steps.
        ("naive", 2, 3, 36.0, [1 / 6, 1 / 2, 1 / 3]),
        # The first group leaves stage 1 at 4 s, the second at 7 s, and stage 2 at 9 s.
        ("gpipe", 2, 3, 27.0, [2 / 9, 6 / 9, 4 / 9]),
        # One group: nothing overlaps.
        ("ring", 1, 2, 12.0, [1 / 6, 1 / 2, 1 / 3]),
        # Stage 1 starts at 1 s and then never waits: 2 groups x 3 rounds x 3 s, and the last 2 s on stage 2.
        ("ring", 2, 3, 21.0, [6 / 21, 18 / 21, 12 / 21]),
    ],
)
def test_unequal_stages_by_hand(
    schedule: Schedule, groups: int, rounds: int, seconds: float, busy: list[float]
) -> None:
    """Stages of 1, 3 and 2 seconds, from the first step to the last one's end."""
    found = simulate(pipe([1, 3, 2], groups, schedule), rounds)
    assert found.seconds == pytest.approx(seconds)
    assert [stage.busy for stage in found.stages] == pytest.approx(busy)


@pytest.mark.parametrize(
    ("groups", "busy"),
    [
        (1, [1 / 6, 3 / 6, 2 / 6]),  # a round takes 6 s
        (2, [1 / 3, 3 / 3, 2 / 3]),  # 2 x 3 s on the slowest stage, just as long
        (4, [1 / 3, 3 / 3, 2 / 3]),  # more groups only queue before it
    ],
)
def test_ring_goes_at_the_slowest_stages_pace(groups: int, busy: list[float]) -> None:
    found = simulate(pipe([1, 3, 2], groups, "ring"))
    assert [stage.busy for stage in found.stages] == pytest.approx(busy)
    assert found.seconds / found.rounds == pytest.approx(max(6, 3 * groups))
    assert found.stages[1].bubble == pytest.approx(1 - busy[1])


def test_links_by_hand() -> None:
    """Stages of 2 s, links of 1 s there and back, one group: 2 busy, 1 moving, 2 idle, 1 moving."""
    found = simulate(pipe([2, 2], 1, "naive", link_s=1))
    assert found.seconds / found.rounds == pytest.approx(6)
    for stage in found.stages:
        assert stage.busy == pytest.approx(2 / 6)
        assert stage.transfer == pytest.approx(2 / 6)
        assert stage.bubble == pytest.approx(2 / 6)
        assert stage.host_gap == pytest.approx(0)


def test_a_link_that_others_wait_for_is_no_transfer_of_theirs() -> None:
    """While 0 -> 1 moves, nobody computes: stage 2 has no part in it, and waits."""
    found = simulate(Pipe([1, 1, 1], [2, 0, 0], 1, "naive"))
    assert [stage.transfer for stage in found.stages] == pytest.approx([2 / 5, 2 / 5, 0])
    assert found.stages[2].host_gap == pytest.approx(2 / 5)
    assert found.stages[2].bubble == pytest.approx(2 / 5)


def test_more_groups_hide_links() -> None:
    busy = [simulate(pipe([1] * 4, groups, "ring", link_s=0.25)).utilization for groups in (4, 5)]
    assert busy == pytest.approx([4 / 5, 1])


def test_a_slow_link_sets_the_pace() -> None:
    """A link carries one message at a time: 4 groups x 3 s a round, whatever the stages do."""
    found = simulate(Pipe([1, 1], [3, 0], 4, "ring"))
    assert found.seconds / found.rounds == pytest.approx(12)
    assert found.utilization == pytest.approx(1 / 3)


def test_filling_and_draining_count_in_a_run_of_so_many_rounds() -> None:
    """K = M = 4, 5 rounds: 20 steps one after the other on each stage, 3 more until the last one ends."""
    found = simulate(pipe([1] * 4, 4, "ring"), rounds=5)
    assert found.seconds == pytest.approx(23)
    assert found.utilization == pytest.approx(20 / 23)


@pytest.mark.parametrize(
    "changes",
    [
        {"stage_s": []},
        {"stage_s": [1.0, 0.0]},
        {"link_s": [0.0]},
        {"link_s": [0.0, -1.0]},
        {"groups": 0},
    ],
)
def test_what_is_no_pipeline(changes: dict[str, Any]) -> None:
    plain: dict[str, Any] = {"stage_s": [1.0, 1.0], "link_s": [0.0, 0.0], "groups": 2}
    with pytest.raises(ValueError, match=r"pipeline|stage"):
        Pipe(**(plain | changes), schedule="ring")
