"""sdpa in pieces: rows of similar length attend together, so that short rows do not pay for a long one,
and prompts that are laid end to end attend each to itself."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "launcher_sdpa"


@dataclass(frozen=True)
class Piece:
    """A part of a forward pass that sees nothing of the others: rows of its batch, queries, keys."""

    rows: slice
    queries: slice
    keys: slice


@dataclass(frozen=True)
class Pieces:
    """The pieces of a pass in their order along ``dim`` of the result: 0 rows, 1 queries."""

    parts: list[Piece]
    dim: int

    @classmethod
    def of_rows(cls, lengths: list[list[int]]) -> Pieces:
        """One query per row; ``lengths`` are the positions of each row, in groups that attend together."""
        ends = accumulate(map(len, lengths))
        parts = [
            Piece(slice(end - len(group), end), slice(None), slice(max(group)))
            for group, end in zip(lengths, ends, strict=True)
        ]
        return cls(parts, dim=0)

    @classmethod
    def of_queries(cls, counts: list[int], lengths: list[int]) -> Pieces:
        """Sequences end to end in one row: each has ``counts`` queries and ``lengths`` keys."""
        ends = zip(accumulate(counts), accumulate(lengths), strict=True)
        parts = [
            Piece(slice(None), slice(last - count, last), slice(key - length, key))
            for (last, key), count, length in zip(ends, counts, lengths, strict=True)
        ]
        return cls(parts, dim=1)


def attend_in_pieces(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    pieces: Pieces | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' sdpa on each piece; (b, q, heads, width) as from the whole, since the mask hides the rest."""
    if pieces is None or attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    results = [
        sdpa_attention_forward(
            module,
            query[part.rows, :, part.queries],
            key[part.rows, :, part.keys],
            value[part.rows, :, part.keys],
            attention_mask[part.rows, :, part.queries, part.keys],
            **options,
        )[0]
        for part in pieces.parts
    ]
    return torch.cat(results, dim=pieces.dim), None


def use_pieces(model: Any) -> bool:
    """Make ``model`` attend in pieces if it can: with sdpa, and handing on what it is called with."""
    known = inspect.signature(type(model).forward).parameters.values()
    hands_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known)
    if model.config._attn_implementation not in ("sdpa", NAME):
        return False
    if not (hands_on and model._supports_attention_backend):
        return False
    AttentionInterface.register(NAME, attend_in_pieces)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    return bool(model.config._attn_implementation == NAME)
