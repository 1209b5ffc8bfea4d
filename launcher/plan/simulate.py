"""A pipeline's schedule played through, event by event: how busy each of its stages is. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Schedule = Literal["naive", "gpipe", "ring"]
Interval = tuple[float, float]  # seconds

WARM_UP = 4  # rounds: from the second on, all groups queue before the slowest stage, or none does
STEADY = 4


@dataclass(frozen=True)
class Pipe:
    """``stage_s``: seconds that a step of one group takes on each stage. ``link_s``: seconds until its result
    is at the next stage, the last one's at the first; meanwhile both stages may compute."""

    stage_s: Sequence[float]
    link_s: Sequence[float]
    groups: int
    schedule: Schedule

    def __post_init__(self) -> None:
        if not self.stage_s or min(self.stage_s) <= 0 or self.groups < 1:
            raise ValueError("a pipeline has stages that take time, and at least one group")
        if len(self.link_s) != len(self.stage_s) or min(self.link_s) < 0:
            raise ValueError("every stage has a link, which takes no time or some")


@dataclass(frozen=True)
class StageShares:
    """One stage's time as shares of the window, adding up to 1; the words are those of measure/bubble.py."""

    busy: float
    transfer: float
    bubble: float
    host_gap: float


@dataclass(frozen=True)
class Simulated:
    """``seconds``: the length of the window; ``rounds``: steps of each group in it."""

    stages: tuple[StageShares, ...]
    seconds: float
    rounds: int

    @property
    def utilization(self) -> float:
        """Mean busy share."""
        return sum(stage.busy for stage in self.stages) / len(self.stages)

    @property
    def bubble(self) -> float:
        """Mean bubble."""
        return sum(stage.bubble for stage in self.stages) / len(self.stages)


def simulate(pipe: Pipe, rounds: int | None = None) -> Simulated:
    """``rounds`` steps of every group, filling and draining included; without it, the steady state.

    - naive: one step is in flight at a time;
    - gpipe: all groups' steps, and the next round when the last of them is back;
    - ring: a group's next step begins as soon as its last one is back.

    With K equal stages, M groups and links that take no time the stages are busy 1/K, M / (M + K - 1) and, in
    the steady state, min(1, M / K) of the time.
    """
    busy, moving = _play(pipe, WARM_UP + STEADY + 1 if rounds is None else rounds)
    if rounds is None:
        rounds = STEADY
        starts = [begin for begin, _ in busy[0]][:: pipe.groups]
        begin, end = starts[WARM_UP], starts[WARM_UP + STEADY]
    else:
        begin, end = 0.0, max(times[-1][1] for times in busy)
    busy, moving = ([_clip(times, begin, end) for times in each] for each in (busy, moving))
    anywhere = _union(interval for times in busy for interval in times)
    stages = (
        # What moves to a stage left the one before it; the first stage's predecessor is the last.
        _shares(busy[s], [*moving[s - 1], *moving[s]], anywhere, end - begin)
        for s in range(len(busy))
    )
    return Simulated(tuple(stages), end - begin, rounds)


def _play(pipe: Pipe, rounds: int) -> tuple[list[list[Interval]], list[list[Interval]]]:
    """When each stage computes, and when each link carries something.

    Steps never overtake each other, so every stage and link takes them in the order of launching.
    """
    count = len(pipe.stage_s)
    busy: list[list[Interval]] = [[] for _ in range(count)]
    moving: list[list[Interval]] = [[] for _ in range(count)]
    free, clear = [0.0] * count, [0.0] * count  # when stage and link are done with what they have
    back = [0.0] * pipe.groups  # when each group's last step came back
    for _ in range(rounds):
        all_back = max(back)
        for group in range(pipe.groups):
            launches = {"naive": max(back), "gpipe": all_back, "ring": back[group]}
            now = launches[pipe.schedule]
            for stage in range(count):
                begin = max(now, free[stage])
                free[stage] = begin + pipe.stage_s[stage]
                busy[stage].append((begin, free[stage]))
                leaves = max(free[stage], clear[stage])
                now = clear[stage] = leaves + pipe.link_s[stage]
                moving[stage].append((leaves, now))
            back[group] = now
    return busy, moving


def _shares(
    busy: list[Interval], moving: list[Interval], anywhere: list[Interval], window: float
) -> StageShares:
    computes = _length(busy)
    active = _length(_union([*busy, *moving]))
    anything = _length(_union([*anywhere, *moving]))
    return StageShares(
        busy=computes / window,
        transfer=(active - computes) / window,
        bubble=(anything - active) / window,
        host_gap=(window - anything) / window,
    )


def _clip(times: Iterable[Interval], begin: float, end: float) -> list[Interval]:
    return [(max(a, begin), min(b, end)) for a, b in times if b > begin and a < end]


def _union(times: Iterable[Interval]) -> list[Interval]:
    """The same moments without overlaps, in order."""
    merged: list[Interval] = []
    for begin, end in sorted(times):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


def _length(times: Iterable[Interval]) -> float:
    return sum(end - begin for begin, end in times)
