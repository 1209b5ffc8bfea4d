"""What a loaded model's weights take in memory, counted tensor by tensor: what the plan's figure is set beside."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from launcher.model.packed import PackedLinear


def weights_bytes(modules: Iterable[nn.Module]) -> int:
    """Bytes of the weights that are there, on every device, packed ones included; each once. A packed copy of an embedding
    that the head is tied to is not one of them: the plan counts it with what steps take."""
    found = {id(module): module for top in modules for module in top.modules()}.values()
    plain = {
        id(parameter): parameter.nbytes
        for module in found
        for parameter in module.parameters(recurse=False)
        if not parameter.is_meta
    }
    packed = [module.nbytes for module in found if isinstance(module, PackedLinear)]
    return sum(plain.values()) + sum(packed)
