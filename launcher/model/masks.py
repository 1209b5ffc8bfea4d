"""What each token of a forward pass may attend to, by kind of layer, in the form that transformers takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from launcher.errors import PreflightError
from launcher.model.attention import Piece
from launcher.model.step import Step

Mask = torch.Tensor | dict[str, torch.Tensor]


@dataclass(frozen=True)
class Places:
    """Row and position of each query (b, q) and of each key (b or 1, s); same row means same sequence. Where
    queries disagree on the positions of keys, those are (b, q, s)."""

    query_rows: torch.Tensor
    query_positions: torch.Tensor
    key_rows: torch.Tensor
    key_positions: torch.Tensor


HIDDEN = 2**62  # the position of a key that a query is not to see: after it


@dataclass(frozen=True)
class Queries:
    """Tokens of a pass: their ``positions`` (t,) in their sequences, and where those branch, what they see of
    their slots: ``bases`` and ``shifts`` (t,) as Scoring has them."""

    positions: torch.Tensor
    bases: torch.Tensor | None = None
    shifts: torch.Tensor | None = None

    @classmethod
    def of(cls, places: torch.Tensor, step: Step, device: torch.device) -> Queries:
        """Of the tokens at these places (t,) of their slots, in the step's order if it branches."""
        if step.scoring is None:
            return cls(places.to(device, non_blocking=True))
        bases, shifts = step.scoring.bases, step.scoring.shifts
        tensors = (places - shifts, bases, shifts)
        return cls(*(tensor.to(device, non_blocking=True) for tensor in tensors))

    def part(self, some: slice) -> Queries:
        if self.bases is None or self.shifts is None:
            return Queries(self.positions[some])
        return Queries(self.positions[some], self.bases[some], self.shifts[some])

    def keys(self, places: torch.Tensor) -> torch.Tensor:
        """Positions of the keys at these places (s,) of the slots as each query has them, (t or 1, s)."""
        if self.bases is None or self.shifts is None:
            return places[None]
        bases, shifts = self.bases[:, None], self.shifts[:, None]
        own = places[None] - shifts
        return places.where(places < bases, own.where(own >= bases, HIDDEN))


class Masks:
    """Makes the masks of one model. Raises PreflightError for layers that keep no keys and values."""

    def __init__(self, config: Any) -> None:
        self.config = config.get_text_config()
        self.additive = self.config._attn_implementation == "eager"
        types = getattr(self.config, "layer_types", None)
        self.kinds = None if types is None else sorted(set(types))
        for kind in self.kinds or ():
            if kind not in ("full_attention", "sliding_attention", "chunked_attention"):
                raise PreflightError(
                    f"layers of kind {kind!r} are not supported",
                    where=str(self.config.model_type),
                    fix="take a model whose layers attend to keys and values",
                )

    def build(self, places: Places, dtype: torch.dtype) -> Mask:
        """(b, 1, q, s): booleans for sdpa, numbers to add for eager; a dict by kind where layers differ."""
        if self.kinds is not None:
            return {kind: self._form(places, kind, dtype) for kind in self.kinds}
        return self._form(places, self._only_kind(), dtype)

    def flat(
        self, pieces: Sequence[Piece], queries: Queries, numbers: int, dtype: torch.dtype
    ) -> Mask:
        """(1, 1, 1, numbers) to add, piece by piece its tokens x its length, where the tokens of the pass are these
        ``queries``; a dict by kind where layers differ."""
        if self.kinds is not None:
            return {kind: self._flat(pieces, queries, numbers, dtype, kind) for kind in self.kinds}
        return self._flat(pieces, queries, numbers, dtype, self._only_kind())

    def _flat(
        self,
        pieces: Sequence[Piece],
        queries: Queries,
        numbers: int,
        dtype: torch.dtype,
        kind: str,
    ) -> torch.Tensor:
        device = queries.positions.device
        found = torch.zeros(numbers, dtype=dtype, device=device)
        for piece in pieces:
            own = queries.part(piece.queries)
            keys = own.keys(torch.arange(piece.length, device=device))
            visible = self._visible(own.positions[:, None], keys, kind)
            found[piece.mask].view(visible.shape).masked_fill_(visible.logical_not_(), -torch.inf)
        return found[None, None, None]

    def is_causal(self, length: int) -> bool:
        """Whether each token of a sequence so long sees all that are before it, in every layer."""
        kinds = self.kinds if self.kinds is not None else [self._only_kind()]
        reach = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
        return all(length <= getattr(self.config, reach[kind]) for kind in kinds if kind in reach)

    def _only_kind(self) -> str:
        if getattr(self.config, "sliding_window", None) is not None:
            return "sliding_attention"
        if getattr(self.config, "attention_chunk_size", None) is not None:
            return "chunked_attention"
        return "full_attention"

    def _form(self, places: Places, kind: str, dtype: torch.dtype) -> torch.Tensor:
        allowed = self._allowed(places, kind)[:, None]
        if not self.additive:
            return allowed
        return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(
            ~allowed, torch.finfo(dtype).min
        )

    def _allowed(self, places: Places, kind: str) -> torch.Tensor:
        query, key = places.query_positions[:, :, None], places.key_positions
        if key.dim() == 2:
            key = key[:, None, :]
        allowed = self._visible(query, key, kind)
        if places.query_rows is not places.key_rows:
            allowed &= places.query_rows[:, :, None] == places.key_rows[:, None, :]
        return allowed

    def _visible(self, query: torch.Tensor, key: torch.Tensor, kind: str) -> torch.Tensor:
        """Whether queries at these positions see keys of their own row at those."""
        visible = key <= query
        if kind == "sliding_attention":
            visible &= key > query - self.config.sliding_window
        elif kind == "chunked_attention":
            size = self.config.attention_chunk_size
            visible &= key // size == query // size
        return visible
