"""What changes a row's logits before a token is drawn, as OpenAI's completions have it: its `logit_bias`, and penalties for
the tokens that were drawn before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from launcher.model.step import LogitBias
from launcher.records import Sampling


class Bias:
    """Of one row. ``added`` has what is added to the logit of each token that is not left as it is."""

    def __init__(self, sampling: Sampling) -> None:
        self._given = dict(sampling.logit_bias)
        self._presence, self._frequency = sampling.presence_penalty, sampling.frequency_penalty
        self._drawn: Counter[int] = Counter()
        self.added = dict(self._given)

    def drew(self, token: int) -> None:
        """Another ``token`` of the row was drawn."""
        if self._presence or self._frequency:
            self._drawn[token] += 1
            penalty = self._presence + self._frequency * self._drawn[token]
            self.added[token] = self._given.get(token, 0.0) - penalty


def together(biases: Sequence[Bias]) -> LogitBias | None:
    """Those of a step's rows, in their order; None where nothing is added."""
    sizes = [len(bias.added) for bias in biases]
    if not any(sizes):
        return None
    return LogitBias(
        rows=torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)),
        tokens=torch.tensor([token for bias in biases for token in bias.added]),
        values=torch.tensor(
            [value for bias in biases for value in bias.added.values()], dtype=torch.float64
        ),
    )
