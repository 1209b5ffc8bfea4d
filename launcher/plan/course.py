"""What a replay is made of and what comes of it: loads of steps, stages in a line, and the time of each stage. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Load(NamedTuple):
    """What a step computes: ``decoding`` rows that see ``positions`` together, ``fed`` tokens of prompts that see
    ``seen`` together, and logits for each of ``rows``: a token is drawn, or one is asked how probable it is."""

    rows: float
    decoding: float
    positions: float
    fed: float
    seen: float


class Held(NamedTuple):
    """What reading and moving add to a round: seconds by which it slows computing down, in which computing waits for
    weights, and in which caches come and go."""

    slowed: float
    weights: float
    moved: float


@dataclass(frozen=True)
class Line:
    """Stages in a row: seconds that a load computes and exchanges on each, and until its result is at the next one
    (of the last: at the first). ``step_s`` is Python's between steps, ``message_s`` what a stage takes to hear of a step
    and to pass it on, in which it computes nothing. ``held`` says of the seconds that a round
    of all groups computes what reading adds, where a model is streamed."""

    stages: Sequence[Callable[[Load], tuple[float, float]]]
    links: Sequence[Callable[[Load], float]]
    step_s: float
    in_rounds: bool = False
    held: Callable[[float], Held] | None = None
    message_s: float = 0.0


@dataclass(frozen=True)
class Spent:
    """Seconds of one stage: steps with a prompt in them and others, exchanging, waiting for weights."""

    prefill: float = 0.0
    decode: float = 0.0
    transfer: float = 0.0
    weights: float = 0.0

    @property
    def busy(self) -> float:
        return self.prefill + self.decode

    def grown(self, whole: Spent, more: float) -> Spent:
        """``whole``, and ``more`` times what it has beyond this."""
        return Spent(
            *(
                most + (most - some) * more
                for some, most in zip(vars(self).values(), vars(whole).values(), strict=True)
            )
        )


@dataclass(frozen=True)
class Replayed:
    """``seconds`` for ``tokens`` new tokens, in ``rounds`` of all groups where they go in rounds; what each stage did."""

    seconds: float
    tokens: float
    rounds: float
    stages: tuple[Spent, ...]

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    @property
    def busy(self) -> tuple[float, ...]:
        """Share of each stage's time."""
        return tuple(stage.busy / self.seconds for stage in self.stages)

    @property
    def utilization(self) -> float:
        """Mean busy share."""
        return sum(self.busy) / len(self.busy)

    def bubbles(self) -> list[float]:
        """Of each stage: idle while another one computes. Where they take turns, that is all they are not busy."""
        anyone = min(1.0, sum(self.busy))
        return [
            max(0.0, min(1 - busy - (spent.transfer + spent.weights) / self.seconds, anyone - busy))
            for busy, spent in zip(self.busy, self.stages, strict=True)
        ]

    def of_stage(self, stage: int) -> dict[str, float]:
        """Fields of a DevicePlan: shares of the stage's time, and seconds that it computes."""
        spent = self.stages[stage]
        return {
            "utilization": self.busy[stage],
            "bubble": self.bubbles()[stage],
            "transfer": spent.transfer / self.seconds,
            "weights": spent.weights / self.seconds,
            "prefill_s": spent.prefill,
            "decode_s": spent.decode,
        }

    def of_turn(self, part: float) -> dict[str, float]:
        """The same of one of several devices that take turns within the only stage and has that ``part`` of it."""
        spent, busy = self.stages[0], self.busy[0]
        return {
            "utilization": part * busy,
            "bubble": (1 - part) * busy,
            "transfer": spent.transfer / self.seconds,
            "weights": spent.weights / self.seconds,
            "prefill_s": part * spent.prefill,
            "decode_s": part * spent.decode,
        }
