"""Layers to stages: consecutive ones, cut so that the slowest stage takes as little time as it can. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

from launcher.errors import UsageError

Span = tuple[int, int]  # first and last layer


def balanced(costs: Sequence[float], stages: int) -> list[int]:
    """How many of the consecutive ``costs`` each stage gets, at least one, so that the largest sum is least.

    Exact. Of the cuts that are equally good in this the most even one is taken (least squares), and of those
    the one whose early stages have fewest: the first one's process also has the engine to run. Raises
    ValueError for more stages than costs.
    """
    if not 1 <= stages <= len(costs):
        raise ValueError(f"{len(costs)} layers can't be cut into {stages} stages")
    sums = [0.0, *accumulate(costs)]
    # Filling stages up to the mean exceeds it by less than one layer, so no best cut is worse than that.
    bound = sums[-1] / stages + max(costs)
    counts = _cut(sums, stages, bound, max)
    slowest = max(_totals(sums, counts))
    return _cut(sums, stages, slowest, lambda so_far, cost: so_far + cost * cost)


def spans(counts: Sequence[int]) -> list[Span]:
    """First and last layer of each stage."""
    ends = list(accumulate(counts))
    return [(end - count, end - 1) for count, end in zip(counts, ends, strict=True)]


def check_counts(counts: Sequence[int], layers: int, stages: int, where: str) -> None:
    """Raises UsageError unless ``counts`` gives each of ``stages`` a part of ``layers``, and all of them."""
    if len(counts) != stages:
        raise UsageError(
            f"{len(counts)} numbers of layers are given for {stages} stages",
            where=where,
            fix="give one number per stage, or leave it out: the plan balances the stages",
        )
    if min(counts) < 1:
        raise UsageError(
            f"stage {counts.index(min(counts))} would have {min(counts)} layers",
            where=where,
            fix="each stage has at least one layer; with fewer parallel.stages, give fewer numbers",
        )
    if sum(counts) != layers:
        raise UsageError(
            f"{' + '.join(map(str, counts))} is {sum(counts)}, but the model has {layers} layers",
            where=where,
            fix="together the stages have all layers, and none twice",
        )


def _cut(
    sums: Sequence[float], stages: int, bound: float, join: Callable[[float, float], float]
) -> list[int]:
    """The cut with the least ``join`` over its stages' costs, none above ``bound``, by dynamic programming.

    ``sums[i]`` is the cost of the first i layers.
    """
    layers = len(sums) - 1
    best = [0.0] + [float("inf")] * layers  # of cutting the first i layers into the stages so far
    choices: list[list[int]] = []
    for stage in range(1, stages + 1):
        following = [float("inf")] * (layers + 1)
        choice = [0] * (layers + 1)
        for end in range(stage, layers - (stages - stage) + 1):
            for begin in range(end - 1, stage - 2, -1):
                cost = sums[end] - sums[begin]
                if cost > bound:
                    break
                total = join(best[begin], cost)
                if total <= following[end]:
                    following[end], choice[end] = total, begin
        best = following
        choices.append(choice)
    counts, end = [], layers
    for choice in reversed(choices):
        counts.append(end - choice[end])
        end = choice[end]
    return counts[::-1]


def _totals(sums: Sequence[float], counts: Sequence[int]) -> list[float]:
    return [sums[last + 1] - sums[first] for first, last in spans(counts)]
