"""Linear layers whose weights lie in the order that oneDNN's kernels read, for models on the CPU.

Plain row-major weights are reordered at every call or read by slower kernels: a decode step of 8 to 32
rows takes about half the time with packed ones (benchmarks/engine.py).
"""

from __future__ import annotations

import torch
from torch import nn

from launcher import logs

_ROWS_HINT = 64  # rows the layout is chosen for; it serves other numbers of rows as well
_DTYPES = (torch.float32, torch.bfloat16)


class PackedLinear(nn.Module):
    """What ``linear`` computes, from a packed copy of its weight."""

    def __init__(self, linear: nn.Linear, tied: bool = False) -> None:
        """``tied``: the plain weight stays, as that of an embedding."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = None if linear.bias is None else linear.bias.detach()
        kept = [] if self.bias is None else [self.bias]
        own = kept if tied else [linear.weight, *kept]
        self.nbytes = sum(int(tensor.nbytes) for tensor in own)
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS_HINT)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features)."""
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            inputs, self._packed, self.bias, "none", [], ""
        )
        return result


def pack_linears(model: nn.Module) -> int:
    """Put a PackedLinear in the place of every linear layer that is on the CPU; returns how many.

    Weights are given up as they are packed, so memory grows by one layer, and for good only by weights
    that are tied to an embedding. Zero where this torch or this CPU has no such kernels.
    """
    if not _available():
        return 0
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        # Exactly Linear: a subclass may hold its weight in another form.
        if type(child) is nn.Linear
        and child.weight.device.type == "cpu"
        and child.weight.dtype in _DTYPES
    ]
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for parent, name, child in found:
        setattr(parent, name, PackedLinear(child, tied=id(child.weight) in tables))
        child.weight = None  # type: ignore[assignment]
    return len(found)


def _available() -> bool:
    """Whether packed layers work here, by trying: the kernels are torch's own, not its public interface."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        for dtype in _DTYPES:
            linear, inputs = nn.Linear(32, 16, dtype=dtype), torch.ones(3, 32, dtype=dtype)
            torch.testing.assert_close(
                PackedLinear(linear)(inputs), linear(inputs), atol=1e-2, rtol=0
            )
    except (RuntimeError, AttributeError, AssertionError) as error:
        logs.get_logger().info("linear layers stay unpacked: %s", error)
        return False
    return True
