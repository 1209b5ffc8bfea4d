"""Head: what makes logits of a model's last hidden states, apart from the layers, and the log-probabilities of given
tokens from it, without holding the logits of a whole prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import MoeModelOutputWithPast

from launcher.model.stage import name_of, shallow
from launcher.model.step import Scoring


class Head:
    """The head of ``model``, a CausalLM of transformers, run by the class's own code: scaling and soft caps too."""

    def __init__(self, model: Any) -> None:
        self._model = shallow(model)
        # accelerate's hooks put a forward into the object that runs the model that it was made for.
        self._model.__dict__.pop("forward", None)
        name = name_of(model, model.get_decoder()).partition(".")[0]
        setattr(self._model, name, _Given())

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(n, vocabulary) for hidden states behind the norm, (n, d)."""
        found: torch.Tensor = self._model(inputs_embeds=hidden[None], use_cache=False).logits[0]
        return found


class _Given(nn.Module):
    """In the place of the layers: they were run before."""

    def forward(self, *_: Any, inputs_embeds: torch.Tensor, **__: Any) -> MoeModelOutputWithPast:
        return MoeModelOutputWithPast(last_hidden_state=inputs_embeds)


def log_probabilities(
    logits: Callable[[torch.Tensor], torch.Tensor],
    hidden: torch.Tensor,
    scoring: Scoring,
    most: int,
) -> torch.Tensor:
    """What ``scoring`` asks of the hidden states (t, d) of its step's tokens: (n,) float32, on their device.

    ``logits`` makes (m, vocabulary) of (m, d); it is given ``most`` at a time.
    """
    places, of = (part.to(hidden.device) for part in scoring.places.unique(return_inverse=True))
    targets = scoring.targets.to(hidden.device)
    found = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
    with torch.inference_mode():
        for first in range(0, len(places), most):
            rows = logits(hidden[places[first : first + most]]).float()
            asked = (of >= first) & (of < first + most)
            own = of[asked] - first
            found[asked] = rows[own, targets[asked]] - rows.logsumexp(dim=-1)[own]
    return found
