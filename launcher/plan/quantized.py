"""Checkpoints whose tensors are not weights yet: a loader has to compute these. Told from config and headers. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from launcher.plan.dims import Config, text_config
from launcher.plan.headers import TensorInfo

SECTIONS = ("quantization_config", "compression_config")
# Beside or in place of a weight: GPTQ and AWQ, bitsandbytes, fp8 and compressed-tensors, mxfp4.
PARTS = re.compile(
    r"\.(qweight|qzeros|g_idx)$|\.(SCB|absmax|quant_map|quant_state\.[\w.]+)$"
    r"|[._]weight_(scale|scale_inv|packed)$|_proj_(blocks|scales|scale_inv)$"
)
FEW_BITS = re.compile(r"[FIU]4$|F6_|F8_|I8$")


def why_quantized(config: Config, tensors: Mapping[str, TensorInfo]) -> str | None:
    """What tells that the weights are quantized; None if nothing does."""
    return _by_config([config, text_config(config)]) or _by_tensors(tensors)


def _by_config(configs: Iterable[Config]) -> str | None:
    for config in configs:
        for section in SECTIONS:
            found = config.get(section)
            if found:
                method = found.get("quant_method") if isinstance(found, Mapping) else None
                return f"{section} in config.json" + (f": {method}" if method else "")
    return None


def _by_tensors(tensors: Mapping[str, TensorInfo]) -> str | None:
    for name, tensor in tensors.items():
        if PARTS.search(name) or FEW_BITS.match(tensor.dtype):
            return f"{name} of type {tensor.dtype}"
    return None
