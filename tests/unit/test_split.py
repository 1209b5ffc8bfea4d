"""Cutting layers into stages: the slowest stage is as fast as any cut allows."""

from __future__ import annotations

import random
from itertools import combinations, pairwise

import pytest

from launcher.errors import UsageError
from launcher.plan.split import balanced, check_counts, spans


def totals(costs: list[float], counts: list[int]) -> list[float]:
    return [sum(costs[first : last + 1]) for first, last in spans(counts)]


def by_trying(costs: list[float], stages: int) -> tuple[float, float]:
    """Slowest stage and sum of squares of the best cut, by looking at all of them."""
    found = []
    for cuts in combinations(range(1, len(costs)), stages - 1):
        ends = [0, *cuts, len(costs)]
        parts = [sum(costs[a:b]) for a, b in pairwise(ends)]
        found.append((max(parts), sum(part * part for part in parts)))
    return min(found)


@pytest.mark.parametrize(
    ("costs", "stages", "counts"),
    [
        ([1.0] * 8, 4, [2, 2, 2, 2]),
        ([1.0] * 10, 4, [2, 2, 3, 3]),
        ([1.0] * 80, 1, [80]),
        ([1.0, 1.0, 1.0], 3, [1, 1, 1]),
        ([1, 1, 1, 1, 1, 5], 2, [5, 1]),  # a head that costs as much as four layers
        ([3, 1, 1, 1, 1, 3], 3, [1, 3, 2]),
        ([5, 1, 1, 1, 1, 1], 3, [1, 2, 3]),  # nothing helps the first, so the others are even
        ([9, 8, 7, 6, 5, 4, 3, 2, 1], 3, [2, 2, 5]),
    ],
)
def test_by_hand(costs: list[float], stages: int, counts: list[int]) -> None:
    assert balanced(costs, stages) == counts


def test_as_good_as_trying_all() -> None:
    draw = random.Random(7)
    for _ in range(200):
        costs = [float(draw.randint(0, 9)) for _ in range(draw.randint(1, 9))]
        stages = draw.randint(1, len(costs))
        counts = balanced(costs, stages)
        parts = totals(costs, counts)
        assert sum(counts) == len(costs)
        assert min(counts) >= 1
        assert (max(parts), sum(part * part for part in parts)) == by_trying(costs, stages)


def test_by_cost_and_not_by_number() -> None:
    """The head of a model with a large vocabulary costs as much as several layers."""
    costs = [1.0] * 24
    costs[-1] += 6.5
    counts = balanced(costs, 4)
    assert counts == [7, 8, 8, 1]
    assert max(totals(costs, counts)) < max(totals(costs, [6, 6, 6, 6]))


def test_figures_that_are_not_whole() -> None:
    costs = [0.1] * 30
    parts = totals(costs, balanced(costs, 7))
    assert max(parts) == pytest.approx(0.5)


@pytest.mark.parametrize("stages", [0, 4])
def test_no_such_cut(stages: int) -> None:
    with pytest.raises(ValueError, match="can't be cut"):
        balanced([1.0, 1.0, 1.0], stages)


def test_spans() -> None:
    assert spans([20, 20, 21, 19]) == [(0, 19), (20, 39), (40, 60), (61, 79)]


def test_counts_by_hand() -> None:
    check_counts([20, 20, 21, 19], 80, 4, "here")
    for counts, message in (
        ([40, 40], "2 numbers of layers are given for 4 stages"),
        ([20, 20, 20, 19], "is 79, but the model has 80"),
        ([40, 40, 0, 0], "stage 2 would have 0 layers"),
        ([41, 40, 1, -2], "stage 3 would have -2 layers"),
    ):
        with pytest.raises(UsageError) as caught:
            check_counts(counts, 80, 4, "parallel.options.layers")
        assert message in str(caught.value)
        assert caught.value.where == "parallel.options.layers"
