"""Linear layers over plain weights, which come and go and so are not worth packing, for bf16 on the CPU.

With some 32 rows oneDNN's kernels would first bring the weights into an order of their own, at every call. Turned
round, as weight times inputs, it is the inputs that are brought in order, and they are small: then plain weights are
as quick as packed ones (benchmarks/streamed.py).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

LEAST, ROWS = (
    20,
    32,
)  # with fewer rows, or more, it does not pay; the kernels are quick for exactly so many


class TurnedLinear(nn.Linear):
    """What Linear computes."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features)."""
        count = input.numel() // self.in_features
        if not LEAST <= count <= ROWS:
            return super().forward(input)
        rows = functional.pad(input.reshape(count, -1), (0, 0, 0, ROWS - count))
        result = torch.mm(self.weight, rows.t()).t()[:count].reshape(*input.shape[:-1], -1)
        return result if self.bias is None else result + self.bias


def turn_linears(model: nn.Module) -> None:
    """Have every linear layer of ``model`` in bf16 on the CPU compute so."""
    for module in model.modules():
        # Exactly Linear: a subclass may hold its weight in another form.
        if type(module) is nn.Linear and module.weight.dtype == torch.bfloat16:
            module.__class__ = TurnedLinear
