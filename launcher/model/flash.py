"""flash_attention_2: pieces of a pass by the kernels of the package flash-attn, without masks."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch

from launcher.errors import PreflightError

PACKAGE = "flash_attn"
DTYPES = (torch.float16, torch.bfloat16)


def check(model: Any) -> None:
    """Raises PreflightError where ``model`` can't attend so: no package, 32 bits, or layers that the kernels don't know."""
    config = model.config.get_text_config()
    if importlib.util.find_spec(PACKAGE) is None:
        why, fix = "the package flash-attn is not installed", "pip install flash-attn, or"
    elif model.dtype not in DTYPES:
        why, fix = "it computes in 16 bits", "model.dtype: bfloat16, or"
    elif "chunked_attention" in (getattr(config, "layer_types", None) or ()):
        why, fix = "its kernels know nothing of chunked attention", ""
    elif not (model._supports_flash_attn and model._supports_attention_backend):
        why, fix = f"models of type {config.model_type} don't support it", ""
    else:
        return
    raise PreflightError(
        f"flash_attention_2 can't be had: {why}",
        where="model.attention",
        fix=f"{fix} set model.attention to sdpa".strip(),
    )


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: torch.Tensor,
    options: dict[str, Any],
) -> torch.Tensor:
    """(1, q, heads, width) for queries (1, heads, q, width), and keys and values as they are stored, (rows, kv heads,
    positions, width). One row's queries are its last positions; where each of q rows has one, it sees the first ``ends``
    (q,) of its positions. ``options`` are those that transformers hands to what attends.
    """
    kernels: Any = importlib.import_module(PACKAGE)
    window = options.get("sliding_window")
    settings = {
        "softmax_scale": options.get("scaling"),
        "causal": True,
        "window_size": (-1, -1) if window is None else (window - 1, 0),
        "softcap": options.get("softcap") or 0.0,
    }
    keys, values = key.transpose(1, 2), value.transpose(1, 2)
    if len(key) == 1:
        found: torch.Tensor = kernels.flash_attn_func(
            query.transpose(1, 2), keys, values, **settings
        )
        return found
    lengths = ends.to(query.device, torch.int32)
    alone = kernels.flash_attn_with_kvcache(
        query[0].transpose(0, 1)[:, None], keys, values, cache_seqlens=lengths, **settings
    )
    return alone[:, 0][None]
