"""The engine's loop played through with predicted times: groups, slots, prompts in steps, stages. No torch.

It follows engine/engine.py and engine/sequence.py: a step feeds every row that decodes, and prompts in the room that
these leave of ``prefill_chunk``; slots are refilled as rows end. Decoding rows are kept as sums, so a step costs
microseconds whatever the number of slots.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from launcher.plan.course import Held, Line, Load, Replayed, Spent
from launcher.plan.plan import Batch
from launcher.plan.workload import Workload

MOST_STEPS = (
    3000  # that are played, or about; longer runs are played in part, or several steps as one
)
T = TypeVar("T")
WAVES = 4  # times that all slots are filled, where there are as many rows


def replay(line: Line, batch: Batch, work: Workload) -> Replayed:
    """``work`` on one replica. Of a long one some waves are played, and the rest goes on as the later half of them:
    the first wave fills the slots, and draining them happens once."""
    slots = batch.groups * batch.slots
    steps = (work.mean_new + work.mean_prompt / batch.prefill_chunk) * batch.groups  # of a wave
    waves = max(2, min(WAVES, int(MOST_STEPS / steps)))
    stride = max(1, int(2 * steps / MOST_STEPS))
    played = min(work.rows, waves * slots)
    whole = _Play(line, batch, work.first(played), stride, work.asked).run()
    if played == work.rows:
        return _scaled(whole, whole, 0.0, work.new_tokens)
    half = _Play(line, batch, work.first(played // 2), stride, work.asked).run()
    more = (work.rows - played) / (played - played // 2)
    return _scaled(half, whole, more, work.new_tokens)


def _scaled(half: _Play, whole: _Play, more: float, tokens: float) -> Replayed:
    """``whole``, and ``more`` times what it does beyond ``half``."""
    stages = zip(half.spent(), whole.spent(), strict=True)
    return Replayed(
        seconds=whole.now + (whole.now - half.now) * more,
        tokens=tokens,
        rounds=whole.rounds + (whole.rounds - half.rounds) * more,
        stages=tuple(some.grown(most, more) for some, most in stages),
    )


@dataclass(order=True)
class _Prompt:
    """In the order in which prompts are fed: of those that came before one step, those with most to say first."""

    came: int
    less_to_say: int
    left: int = field(compare=False)
    new: int = field(compare=False)
    cached: int = field(default=0, compare=False)


@dataclass
class _Group:
    """Rows of one group. ``ends`` holds (step after which a row ends, its length at step 0). A step stands for
    ``stride`` of the engine's. ``asked`` as in Workload."""

    slots: int
    stride: int
    asked: float = 0.0
    ends: list[tuple[int, int]] = field(default_factory=list)
    prompts: list[_Prompt] = field(default_factory=list)
    taken: int = 0  # steps, those without decoding rows too
    step: int = 0
    lengths: int = 0  # sum over decoding rows of their length at step 0
    back: float | None = None  # when the step in flight is back

    @property
    def rows(self) -> int:
        return len(self.ends) + len(self.prompts)

    def add(self, prompt: int, new: int) -> None:
        """A row takes a slot."""
        insort(self.prompts, _Prompt(self.taken, -new, prompt, new))

    def load(self, chunk: int) -> Load:
        """The next step, taken: prompts move on, rows that end leave."""
        decoding, stride = len(self.ends), self.stride
        if self.prompts and decoding >= chunk:
            decoding = 0  # a prompt that finds no room goes without those that decode
        positions = decoding and self.lengths + decoding * (self.step * stride + 1)
        fed, seen, drawn, begun = self._feed((chunk - decoding) * stride)
        drawn = max(drawn, fed * self.asked)
        self.taken += 1
        if decoding:
            self.step += 1
            while self.ends and self.ends[0][0] <= self.step:
                self.lengths -= heapq.heappop(self.ends)[1]
        for prompt in begun:
            if prompt.new > 1:  # the first new token is drawn at the prompt's end
                base = prompt.cached - self.step * stride
                heapq.heappush(self.ends, (self.step - (1 - prompt.new) // stride, base))
                self.lengths += base
        return Load(decoding + drawn / stride, decoding, positions, fed / stride, seen / stride)

    def _feed(self, room: int) -> tuple[int, float, float, list[_Prompt]]:
        """Tokens of prompts, positions that they see, how many prompts they are of, and those that end with them."""
        fed, seen, drawn, begun = 0, 0.0, 0, []
        while self.prompts and room > fed:
            prompt = self.prompts[0]
            part = min(room - fed, prompt.left)
            seen += part * (prompt.cached + (part + 1) / 2)
            prompt.left -= part
            prompt.cached += part
            fed, drawn = fed + part, drawn + 1
            if not prompt.left:
                begun.append(self.prompts.pop(0))
        return fed, seen, drawn, begun


class _Play:
    """One simulation; times are those of the engine's process."""

    def __init__(
        self,
        line: Line,
        batch: Batch,
        rows: Sequence[tuple[int, int]],
        stride: int,
        asked: float = 0.0,
    ) -> None:
        self.line, self.chunk, self.rows, self.stride = (
            line,
            batch.prefill_chunk,
            deque(rows),
            stride,
        )
        self.groups = [_Group(batch.slots, stride, asked) for _ in range(batch.groups)]
        count = len(line.stages)
        # Many stages and links are one object each: what they cost is asked once per step.
        self.costs, costs = _distinct(line.stages)
        self.links, links = _distinct(line.links)
        self.kinds = list(zip(costs, links, strict=True))
        self.free = [0.0] * count
        self.computed = {"prefill": [0.0] * count, "decode": [0.0] * count}
        self.transfer, self.weights = [0.0] * count, [0.0] * count
        self.now = 0.0
        self.rounds = 0

    def run(self) -> _Play:
        flights: deque[_Group] = deque()
        while True:
            self._refill()
            before = self._computed()
            for group in self.groups:
                if group.back is None and group.rows:
                    self._launch(group)
                    flights.append(group)
            if not flights:
                return self
            self.rounds += self.stride
            for _ in range(len(flights) if self.line.in_rounds else 1):
                group = flights.popleft()
                self.now, group.back = max(self.now, group.back or 0.0), None
            if self.line.held:
                self._hold(self.line.held, before)

    def spent(self) -> list[Spent]:
        """What each stage did."""
        times = (*self.computed.values(), self.transfer, self.weights)
        return [Spent(*each) for each in zip(*times, strict=True)]

    def _computed(self) -> dict[str, float]:
        """Seconds that the first stage computed, by kind."""
        return {kind: times[0] for kind, times in self.computed.items()}

    def _hold(self, held: Callable[[float], Held], before: dict[str, float]) -> None:
        """Reading holds up the only stage in a round; it had computed so long ``before``."""
        computed = {kind: now - before[kind] for kind, now in self._computed().items()}
        total = sum(computed.values())
        slowed, weights, moved = (each * self.stride for each in held(total / self.stride))
        for kind, seconds in computed.items():
            self.computed[kind][0] += slowed * seconds / total
        self.weights[0] += weights
        self.transfer[0] += moved
        self.now += slowed + weights + moved

    def _refill(self) -> None:
        while self.rows:
            free = [
                group for group in self.groups if group.back is None and group.rows < group.slots
            ]
            if not free:
                return
            prompt, new = self.rows.popleft()
            min(free, key=lambda group: group.rows).add(prompt, new)

    def _launch(self, group: _Group) -> None:
        """Send a step through the stages, which take steps in the order of launching."""
        line, load, stride = self.line, group.load(self.chunk), self.stride
        at = self.now + line.step_s * stride
        computed = self.computed["prefill" if load.fed else "decode"]
        found = [cost(load) for cost in self.costs]
        moved = [link(load) * stride for link in self.links]
        for stage, (cost, link) in enumerate(self.kinds):
            computing, exchanging = found[cost]
            begin = max(at, self.free[stage])
            at = self.free[stage] = begin + (computing + exchanging + line.message_s) * stride
            computed[stage] += computing * stride
            self.transfer[stage] += exchanging * stride
            if stage == 0:
                self.now = at  # launching returns when the first stage is done
            at += moved[link]
        group.back = at


def _distinct(objects: Sequence[T]) -> tuple[list[T], list[int]]:
    """The different ones of ``objects``, and of each which one it is."""
    numbers = {key: number for number, key in enumerate(dict.fromkeys(map(id, objects)))}
    return list({id(each): each for each in objects}.values()), [numbers[id(o)] for o in objects]
