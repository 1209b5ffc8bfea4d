"""Ragged: how the rows of a step lie in one forward pass, end to end and without padding."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch

from launcher.model.attention import Piece, Pieces
from launcher.model.cache import InPlace, SlotCache
from launcher.model.masks import Mask, Masks, Queries
from launcher.model.step import Step

SHORT = 64  # positions: rows whose lengths differ by less attend together


@dataclass(frozen=True)
class Ragged:
    """The tokens of a step in the order of its pass: rows of one token first, those of similar length together. A step
    that branches keeps its order, since a slot may be in several of its rows.

    ``order`` are the step's rows in that order; ``access`` has their places in the cache.
    """

    order: list[int]
    access: InPlace
    pieces: Pieces

    @classmethod
    def of(cls, step: Step, cache: SlotCache, masks: Masks, bare: bool = False) -> Ragged:
        """Moves rows in ``cache``, so that those that attend together lie together. ``bare``: without masks."""
        slots, starts, counts = step.slots.tolist(), step.starts.tolist(), step.counts.tolist()
        branches = step.scoring is not None
        single = [row for row in range(len(slots)) if counts[row] == 1 and not branches]
        groups = _by_length(single, starts)
        cache.gather([[slots[row] for row in group] for group in groups])
        rows = cache.rows(slots)
        groups = [sorted(group, key=rows.__getitem__) for group in groups]
        order = [row for group in groups for row in group]
        order += [row for row in range(len(slots)) if counts[row] > 1 or branches]
        access = InPlace(
            [rows[row] for row in order],
            [starts[row] for row in order],
            [counts[row] for row in order],
            singles=len(single),
        )
        alone = [[row] for row in order[len(single) :]]
        spans = [_Span.of(group, starts, counts, branches) for group in [*groups, *alone]]
        parts, done, numbers = [], 0, 0
        for span, first in zip(spans, _firsts([*map(len, groups), *map(len, alone)]), strict=True):
            place = access.rows[first]
            needs = not bare and (span.ragged or not masks.is_causal(span.length))
            size = span.tokens * span.length if needs else 0
            parts.append(
                Piece(
                    rows=slice(place, place + span.rows),
                    queries=slice(done, done + span.tokens),
                    length=span.length,
                    mask=slice(numbers, numbers + size) if needs else None,
                )
            )
            done, numbers = done + span.tokens, numbers + size
        return cls(order, access, Pieces(parts, numbers))

    def places(self) -> torch.Tensor:
        """Of each token in its slot, (t,)."""
        return ranges(self.access.starts, self.access.counts)

    def mask(self, masks: Masks, queries: Queries, dtype: torch.dtype) -> Mask:
        """The flat mask, maybe with nothing in it, on the device of ``queries``, which are the tokens."""
        needing = [part for part in self.pieces.parts if part.mask is not None]
        return masks.flat(needing, queries, self.pieces.numbers, dtype)

    def tokens(self) -> torch.Tensor:
        """Where each token of the pass stands among those of the step, whose rows lie in the step's order, (t,)."""
        counts = self.access.counts
        of_row = dict(zip(self.order, counts, strict=True))
        firsts = _firsts([of_row[row] for row in range(len(counts))])
        return ranges([firsts[row] for row in self.order], counts)

    def ends(self) -> torch.Tensor:
        """Where the last token of each of the step's rows stands in the pass, (b,)."""
        found = torch.empty(len(self.order), dtype=torch.int64)
        found[self.order] = torch.tensor(self.access.counts).cumsum(0) - 1
        return found


@dataclass(frozen=True)
class _Span:
    """Rows that attend together, one token of each or all of the only one, to ``length`` positions at most.

    ``ragged`` where not all tokens see what a causal mask of that length shows them."""

    rows: int
    tokens: int
    length: int
    ragged: bool

    @classmethod
    def of(cls, rows: list[int], starts: list[int], counts: list[int], branches: bool) -> _Span:
        tokens = sum(counts[row] for row in rows)
        ends = [starts[row] + counts[row] for row in rows]
        if len(rows) == 1:
            return cls(1, tokens, ends[0], starts[rows[0]] > 0 and (tokens > 1 or branches))
        return cls(len(rows), tokens, max(ends), min(ends) < max(ends))


def ranges(starts: list[int], counts: list[int]) -> torch.Tensor:
    """start, start + 1 ... of every row, end to end."""
    return torch.cat(
        [torch.arange(start, start + count) for start, count in zip(starts, counts, strict=True)]
    )


def _firsts(counts: list[int]) -> list[int]:
    """Where each of some ranges begins that lie end to end."""
    return [0, *accumulate(counts)][:-1]


def _by_length(rows: list[int], lengths: list[int]) -> list[list[int]]:
    """Rows whose lengths differ by less than SHORT, or by a quarter where they are long; the short ones first."""
    groups: dict[tuple[int, int], list[int]] = {}
    for row in rows:
        width = max(SHORT, 1 << max(0, lengths[row].bit_length() - 3))
        groups.setdefault((width, lengths[row] // width), []).append(row)
    return [groups[key] for key in sorted(groups)]
