"""Workload: how long prompts and generations are, in tokens, as far as it can be known before a run. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from launcher.records import Demand

BYTES_PER_TOKEN = 4.0  # of ordinary text, with a vocabulary of 32,000


@dataclass(frozen=True)
class Workload:
    """``lengths``: prompt and new tokens of sequences that stand for all ``rows``, in the order of the input; a row is a
    sequence for each of its answers.

    A row to score is a prompt with its continuations, after which one token is as good as drawn; ``counted`` are the tokens
    of continuations, which count in its place. ``asked``: what part of such a prompt's tokens meet the head.
    """

    lengths: tuple[tuple[int, int], ...]
    rows: int
    counted: float = 1.0
    asked: float = 0.0

    @classmethod
    def of(cls, demand: Demand, vocabulary: int, max_length: int) -> Workload:
        """Of rows that find room in slots of ``max_length`` tokens. Every row is taken to generate as much as it may: what ends earlier makes a run shorter than predicted.

        Without a sample of the input a mean prompt is taken to be half as long as the longest.
        """
        each = demand.bytes_per_token or bytes_per_token(vocabulary)
        sample = demand.sample or ((demand.longest_prompt_bytes // 2, demand.max_new_tokens),)
        lengths = []
        for size, new in sample:
            prompt = max(1, min(round(size / each), max_length - 1))
            lengths.append((prompt, max(1, min(new, max_length - prompt))))
        scored = demand.scored_bytes / each
        asked = min(1.0, scored * len(lengths) / sum(prompt for prompt, _ in lengths))
        return cls(tuple(lengths), max(1, demand.sequences), max(1.0, scored), asked)

    @property
    def new_tokens(self) -> float:
        """Of all rows, or those that count."""
        return self.mean_new * self.rows * self.counted

    @cached_property
    def mean_new(self) -> float:
        return sum(new for _, new in self.lengths) / len(self.lengths)

    @cached_property
    def mean_prompt(self) -> float:
        return sum(prompt for prompt, _ in self.lengths) / len(self.lengths)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest row, the new ones included."""
        return max(prompt + new for prompt, new in self.lengths)

    def first(self, count: int) -> list[tuple[int, int]]:
        """The lengths of ``count`` rows, the sample's again and again."""
        return [self.lengths[row % len(self.lengths)] for row in range(count)]


def bytes_per_token(vocabulary: int) -> float:
    """A larger vocabulary has longer tokens: about one byte each with 256, four with 32,000, 4.5 with 128,000."""
    return min(4.5, max(1.0, 1 + (BYTES_PER_TOKEN - 1) * math.log2(vocabulary / 256) / 7))
