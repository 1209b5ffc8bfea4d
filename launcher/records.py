"""What crosses processes: requests, what became of them, and how a rank is doing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Sampling:
    """How one request is sampled. ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 are off. ``logit_bias`` has
    pairs of token and what its logit is raised by. ``logprobs``: tell the log-probability of each token, and those of so
    many likeliest ones; None tells nothing."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    n: int = 1


@dataclass(frozen=True)
class Request:
    """One input row. Exactly one of ``prompt`` and ``messages`` is set. ``index`` counts rows from 0.

    ``tools`` are for the chat template; with ``echo`` the text of the result begins with the prompt. A row to score
    has ``continuations``, and its prompt may be empty.
    """

    index: int
    id: str
    sampling: Sampling
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    echo: bool = False
    continuations: tuple[str, ...] = ()


@dataclass(frozen=True)
class Generation:
    """A finished row. ``finish_reason`` is ``stop`` (end of text or a stop string) or ``length``. ``logprobs`` has an
    entry for each token of the text, as OpenAI's chat completions have it, where the row asked for them. A row that
    asked for several answers has all of them in ``choices``, the first of which is what the other fields tell, and
    ``completion_tokens`` of all together."""

    index: int
    id: str
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    logprobs: list[dict[str, Any]] | None = None
    choices: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Score:
    """A row that was scored. Each of ``scores``, one per continuation, has the sum (``logprob``) and the mean of its
    tokens' log-probabilities, these themselves (``tokens``) and the tokens (``token_ids``). ``best`` and ``best_mean``
    are the numbers of the continuations with the largest. ``completion_tokens`` counts those of all continuations.
    """

    index: int
    id: str
    scores: list[dict[str, Any]]
    best: int
    best_mean: int
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Failure:
    """A row that can't be answered; ``code`` is a stable word, ``message`` says it to a person."""

    index: int
    id: str
    code: str
    message: str


@dataclass(frozen=True)
class Attempt:
    """One start of one world. ``name`` is its folder under attempts/ and the prefix of its files."""

    world: int
    number: int

    @property
    def name(self) -> str:
        return f"w{self.world:04d}-a{self.number:04d}"

    @classmethod
    def parse(cls, name: str) -> Attempt:
        """``Attempt.parse(attempt.name) == attempt``. Raises ValueError for any other text."""
        world, _, number = name.partition("-")
        if not (world.startswith("w") and number.startswith("a")):
            raise ValueError(f"not the name of an attempt: {name!r}")
        return cls(int(world[1:]), int(number[1:]))


def latest(attempts: Iterable[Attempt]) -> dict[int, Attempt]:
    """The last attempt of each world, of ``attempts`` in the order of their numbers."""
    return {attempt.world: attempt for attempt in attempts}


@dataclass
class RankStatus:
    """What a rank says of itself about once a second; times are seconds since the epoch of its host."""

    attempt: str
    rank: int
    replica: int
    host: str
    pid: int
    phase: str = (
        "starting"  # starting | joining | loading | running | serving | draining | finished
    )
    phase_since: float = 0.0
    updated: float = 0.0
    steps: int = 0
    blocks: int = (
        0  # of a streamed model: that a step has gone through, a sign of life within long steps
    )
    rows_done: int = 0
    rows_failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    figures: dict[str, float] = field(
        default_factory=dict
    )  # load_s, peak_memory_bytes, bytes_read ...


@dataclass(frozen=True)
class Demand:
    """What the input asks of a plan. ``exact`` is False where only the head of the input was read.

    Rows to score draw nothing: their continuations are read as their prompts are. ``max_new_tokens`` is then the room
    that continuations need in a slot, and ``scored_bytes`` what a row's continuations have together, on average.
    """

    rows: int
    longest_prompt_bytes: int
    max_new_tokens: int  # the largest that any row asks for
    exact: bool = True
    # Of some rows, evenly spread: bytes of the prompt and most new tokens. What prompts look like, and their tokens.
    sample: tuple[tuple[int, int], ...] = field(default=(), compare=False)
    excerpts: tuple[str, ...] = field(default=(), compare=False, repr=False)
    bytes_per_token: float | None = field(default=None, compare=False)
    scored_bytes: float = field(default=0.0, compare=False)
    answers: float = field(default=1.0, compare=False)  # of a row, on average

    @property
    def sequences(self) -> int:
        """What is generated, or scored: an answer to a row each."""
        return self.share(1)

    def share(self, writers: int) -> int:
        """Sequences of one of so many that share the rows, whole ones: the one with most of them."""
        return math.ceil(-(-self.rows // writers) * self.answers - 1e-6)
