"""Attention in pieces: rows that lie end to end attend each to its own part of the cache, where it is stored.

Rows that feed one token go in groups of similar length, so that short rows do not pay for a long one; their query
heads that share a KV head go as the queries of that one head.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from launcher.errors import PreflightError
from launcher.model import flash

# transformers takes every name with "flash" in it for its own kernels, and makes masks for those.
NAME, FA2 = "launcher_sdpa", "launcher_fa2"


@dataclass(frozen=True)
class Piece:
    """A part of a forward pass that sees nothing of the others: ``queries`` of the tokens and the first ``length``
    positions of ``rows`` of the cache, one query for each of them or all for the only one. ``mask`` is its part of
    the flat mask, None where every token sees all that are before it, or attention does without masks."""

    rows: slice
    queries: slice
    length: int
    mask: slice | None

    @property
    def count(self) -> int:
        return self.queries.stop - self.queries.start


@dataclass(frozen=True)
class Pieces:
    """The pieces of a pass in the order of its tokens, and how many numbers their masks have. ``ends``: how many
    positions each token (t,) sees where flash attention does without masks; else None."""

    parts: list[Piece]
    numbers: int
    ends: torch.Tensor | None = None


# Of the pass in progress. Not among the arguments of the model, whose layers need not hand those on.
_pieces: ContextVar[Pieces | None] = ContextVar("pieces", default=None)


@contextlib.contextmanager
def attending(pieces: Pieces) -> Iterator[None]:
    """In its context a model that ``use_pieces`` has prepared attends in these."""
    before = _pieces.set(pieces)
    try:
        yield
    finally:
        _pieces.reset(before)


def attend_in_pieces(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """(1, t, heads, width) for queries (1, heads, t, width), and keys and values as they are stored, (rows, kv heads,
    positions, width). ``attention_mask`` is flat, (1, 1, 1, n). Out of ``attending`` it is transformers' sdpa.

    Raises PreflightError for a model that does not hand the mask on as it is.
    """
    pieces = _pieces.get()
    if (pieces is None or pieces.ends is None) and options.get("softcap"):
        raise flash.refused("rows that branch take sdpa, which does not cap scores")
    if pieces is None:
        found, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return found, None
    numbers = -1 if attention_mask is None else attention_mask.numel()
    if attention_mask is None or numbers != pieces.numbers:
        raise PreflightError(
            f"{type(module).__name__} changes its attention mask",
            where="model.attention",
            fix="set model.attention to eager",
        )
    flat, results = attention_mask[0, 0, 0], []
    for part in pieces.parts:
        own = query[:, :, part.queries]
        keys, values = (stored[part.rows, :, : part.length] for stored in (key, value))
        if pieces.ends is not None:
            results.append(flash.attend(own, keys, values, pieces.ends[part.queries], options))
        else:
            mask = None if part.mask is None else flat[part.mask]
            results.append(_attend(module, own, keys, values, mask, options))
    return results[0] if len(results) == 1 else torch.cat(results, dim=1), None


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    options: dict[str, Any],
) -> torch.Tensor:
    """(1, q, heads, width) for one piece: queries (1, heads, q, width), keys (rows, kv heads, s, width)."""
    _, heads, count, width = query.shape
    rows, kv_heads, length, _ = key.shape
    if rows == 1 and (count > 1 or heads == kv_heads):
        mask = None if mask is None else mask.view(1, 1, count, length)
        return sdpa_attention_forward(module, query, key, value, mask, **options)[0]
    shared = heads // kv_heads
    query = query[0].transpose(0, 1).reshape(rows, kv_heads, shared, width)
    mask = None if mask is None else mask.view(rows, 1, 1, length)
    scale = options.get("scaling")
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and scale and shared > 1:
        found = _attend_on_cpu(query, key, value, mask, scale)
    else:
        wide = None if mask is None else mask.expand(-1, -1, shared, -1)
        found = scaled_dot_product_attention(query, key, value, attn_mask=wide, scale=scale)
    return found.reshape(1, rows, heads, value.shape[3])


def _attend_on_cpu(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """Softmax attention for a few queries per KV head, in bf16: products of keys with queries read the keys as they
    lie, while sdpa's of queries with keys reorder all keys first, which takes 1.4 times as long
    (benchmarks/attention.py)."""
    scores = torch.matmul(key, query.transpose(2, 3)).transpose(2, 3).float() * scale
    if mask is not None:
        scores += mask
    return torch.matmul(scores.softmax(dim=-1).to(value.dtype), value)


def use_pieces(model: Any) -> bool:
    """Make ``model`` attend in pieces if it can: with sdpa, or as ``use_flash`` has said."""
    used = model.config._attn_implementation
    if used == "sdpa" and model._supports_attention_backend:
        used = _set(model, NAME)
    return used in (NAME, FA2)


def use_flash(model: Any) -> None:
    """Make ``model`` attend in pieces with flash attention. Raises PreflightError if it can't."""
    flash.check(model)
    if _set(model, FA2) != FA2:
        raise flash.refused("transformers did not take it")


def _set(model: Any, name: str) -> str:
    AttentionInterface.register(name, attend_in_pieces)
    AttentionMaskInterface.register(name, sdpa_mask)
    model.set_attn_implementation(name)
    return str(model.config._attn_implementation)
