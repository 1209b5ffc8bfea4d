"""flash_attention_2: pieces of a pass by the kernels of the package flash-attn, without masks."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch

from launcher.errors import PreflightError
from launcher.plan.attends import no_flash

PACKAGE = "flash_attn"
KNOWN = {"position_ids", "cache_position"}  # tensors that change nothing of what is attended to


def refused(why: str, first: str = "") -> PreflightError:
    """The error of a model that can't attend so. ``first``: what else would do."""
    return PreflightError(
        f"flash_attention_2 can't be had: {why}",
        where="model.attention",
        fix=f"{first} set model.attention to sdpa".strip(),
    )


def check(model: Any) -> None:
    """Raises PreflightError where ``model`` can't attend so: no package, or layers that the kernels don't know."""
    if importlib.util.find_spec(PACKAGE) is None:
        raise refused("the package flash-attn is not installed", "pip install flash-attn, or")
    kind, dtype = model.config.model_type, str(model.dtype).removeprefix("torch.")
    if why := no_flash(model.config.to_dict(), dtype, branches=False):
        raise refused(why)
    if not (model._supports_flash_attn and model._supports_attention_backend):
        raise refused(f"models of type {kind} don't support it")


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: torch.Tensor,
    options: dict[str, Any],
) -> torch.Tensor:
    """(1, q, heads, width) for queries (1, heads, q, width), and keys and values as they are stored, (rows, kv heads,
    positions, width). One row's queries are its last positions; where each of q rows has one, it sees the first ``ends``
    (q,) of its positions. ``options`` are those that transformers hands to what attends. Raises PreflightError for
    tensors among them that the kernels can't be told of.
    """
    tensors = {name for name, value in options.items() if isinstance(value, torch.Tensor)}
    if unknown := tensors - KNOWN:
        raise refused(f"its kernels know nothing of {', '.join(sorted(unknown))}")
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
