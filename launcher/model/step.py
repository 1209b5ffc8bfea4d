"""Step and StepModel: what makes the strategies one program for the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch


@dataclass(frozen=True)
class StepSampling:
    """Per row of a step, how its next token is drawn: float64, float64, int64, int64, int64, all of shape (b,).

    ``position`` is the number of tokens before the one that is drawn (prompt and generated), so noise
    depends on (seed, position) alone.
    """

    temperature: torch.Tensor
    top_p: torch.Tensor
    top_k: torch.Tensor
    seed: torch.Tensor
    position: torch.Tensor


@dataclass(frozen=True)
class LogitBias:
    """What is added to logits before a token is drawn: ``values`` (n,) float64 to those of ``tokens`` (n,) int64 in the
    step's ``rows`` (n,) int64. A row names a token once."""

    rows: torch.Tensor
    tokens: torch.Tensor
    values: torch.Tensor


# Of a step that scores: rows per slot, and log-probabilities asked for per token that a step may have.
MOST_ROWS, MOST_ASKED = 2, 2


@dataclass(frozen=True)
class Scoring:
    """What a step is asked that draws nothing: log-probabilities of given tokens. All int64, on the CPU.

    Such a step may branch: continuations of one prefix lie one behind the other in the prefix's slot, and each
    sees the prefix and itself. Of each of the step's t valid tokens, ``bases`` (t,) says how long the prefix is that
    it sees, and ``shifts`` (t,) how far its place in the slot is behind its position in its own sequence.
    Asked is, for ``places`` (n,) of those tokens, how probable the ``targets`` (n,) are as the next ones.
    """

    bases: torch.Tensor
    shifts: torch.Tensor
    places: torch.Tensor
    targets: torch.Tensor


@dataclass(frozen=True)
class Step:
    """One forward pass of one group over b of its slots; CPU tensors.

    ``tokens`` (b, q) int64, padded on the right; ``starts`` (b,) int64 tokens already in the slot's cache;
    ``counts`` (b,) int64 valid tokens of each row, 1 <= counts <= q; ``slots`` (b,) int64.
    ``sampling`` None means greedy for every row. Every row yields a token, drawn after its last valid
    position; the engine ignores those of a prefill chunk that is not the prompt's last.

    ``bias`` changes what is drawn. ``tops``: beside each token, its log-probability and those of so many likeliest tokens
    are told, all as the model has them.
    With ``scoring`` nothing is drawn: the step yields log-probabilities. A slot may then have several rows, of which
    each sees what those before it write; ``starts`` are places in the slot.
    """

    group: int
    kind: str  # prefill | decode
    slots: torch.Tensor
    tokens: torch.Tensor
    starts: torch.Tensor
    counts: torch.Tensor
    sampling: StepSampling | None = None
    scoring: Scoring | None = None
    tops: int | None = None
    bias: LogitBias | None = None

    @property
    def answers(self) -> int:
        """How many numbers it yields."""
        if self.scoring is not None:
            return len(self.scoring.places)
        return len(self.slots) * (1 if self.tops is None else 2 + 2 * self.tops)

    def valid_tokens(self) -> torch.Tensor:
        """(t,): those of every row, one row after the other."""
        return self.tokens[torch.arange(self.tokens.shape[1]) < self.counts[:, None]]


class StepModel(Protocol):
    """A loaded model that runs steps.

    ``depth`` is the number of groups that must be in flight to keep every stage busy; ``launch`` starts a
    step and returns at once where the strategy can; ``collect`` returns what the next finished step yields, in
    launch order and on the CPU: tokens (b,) int64, or of a float type log-probabilities (n,), or with ``tops`` a
    row for each token (b, 2 + 2 * tops): token, log-probability, likeliest tokens, theirs. ``figures`` are for the
    rank's status: bytes held now, and what else was measured. ``close`` frees what was taken.
    """

    depth: int

    def launch(self, step: Step) -> None: ...

    def collect(self) -> torch.Tensor: ...

    def figures(self) -> dict[str, float]: ...

    def close(self) -> None: ...


@runtime_checkable
class SweepModel(StepModel, Protocol):
    """A StepModel whose steps run together: ``collect`` runs all that were launched in one sweep over the weights.

    ``on_progress`` is called while a sweep lasts, which may be minutes.
    """

    on_progress: Callable[[], None]


class Server(Protocol):
    """What the ranks of a replica beside its first one load.

    ``serve`` works for the first rank until that one closes its StepModel, and tells ``working`` True when a
    step begins and False when this rank waits for another one. It returns figures for the rank's status.
    """

    def serve(self, working: Callable[[bool], None]) -> dict[str, float]: ...
