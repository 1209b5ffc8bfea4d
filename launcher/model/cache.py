"""KV cache of one group: one row per slot, each with its own length, so that a slot can be refilled
while its neighbours decode."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from launcher.plan.memory import BLOCK


class Access(Protocol):
    """How one forward pass writes its keys (or values) into the rows and what it then attends to.

    A row that begins anew is cleared: masked positions weigh nothing, but nothing times NaN is NaN, and the
    sequence that was there before may have ended in that.
    """

    @property
    def past(self) -> int:
        """Positions before those of this pass, of the longest row."""

    @property
    def length(self) -> int:
        """Positions in use after this pass, of the longest row."""

    def exchange(self, stored: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Write ``new`` into ``stored`` (rows, heads, positions, width); return what is attended to."""


@dataclass
class InPlace:
    """Tokens of some rows end to end, ``new`` is (1, heads, sum of counts, width), and attention that finds each
    row by itself: what comes back is all that is stored. The first ``singles`` rows have one token each, the last
    one of theirs; ``starts`` and ``counts`` are those of every row."""

    rows: list[int]
    starts: list[int]
    counts: list[int]
    singles: int
    _copies: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.past = max(self.starts)
        ends = [start + count for start, count in zip(self.starts, self.counts, strict=True)]
        self.length = max(ends)
        fresh = zip(self.rows, self.starts, ends, strict=True)
        self._fresh = [(row, end) for row, start, end in fresh if not start]

    def exchange(self, stored: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        for row, end in self._fresh:
            stored[row, :, end:] = 0
        if self.singles:
            rows, positions = self._singles_on(new.device)
            stored[rows, :, positions] = new[0, :, : self.singles].transpose(0, 1)
        first = self.singles
        for row, start, count in zip(
            self.rows[first:], self.starts[first:], self.counts[first:], strict=True
        ):
            stored[row, :, start : start + count] = new[0, :, first : first + count]
            first += count
        return stored

    def _singles_on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        if device not in self._copies:
            places = torch.tensor([self.rows[: self.singles], self.starts[: self.singles]])
            rows, positions = places.to(device, non_blocking=True)
            self._copies[device] = rows, positions
        return self._copies[device]


@dataclass
class Together:
    """One token for each of the first b rows: ``new`` is (b, heads, 1, width), and so is what comes
    back with the longest row's positions. ``positions`` (b,) says where each token goes."""

    positions: torch.Tensor
    _copies: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.past = int(self.positions.max())
        self.length = self.past + 1
        self._fresh = [row for row, start in enumerate(self.positions.tolist()) if not start]

    def exchange(self, stored: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        rows, positions = self._on(new.device)
        for row in self._fresh:
            stored[row] = 0
        stored[rows, :, positions] = new[:, :, 0]
        return stored[: len(self.positions), :, : self.length]

    def _on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        if device not in self._copies:
            rows = torch.arange(len(self.positions), device=device)
            self._copies[device] = rows, self.positions.to(device, non_blocking=True)
        return self._copies[device]


@dataclass(frozen=True)
class Packed:
    """Several tokens of some rows, one row after the other: ``new`` is (1, heads, sum of counts, width);
    what comes back is (1, heads, sum of starts and counts, width), in the same order of rows."""

    rows: list[int]
    starts: list[int]
    counts: list[int]

    @property
    def past(self) -> int:
        return max(self.starts)

    @property
    def lengths(self) -> list[int]:
        """Positions in use after this pass, row by row."""
        return [start + count for start, count in zip(self.starts, self.counts, strict=True)]

    @property
    def length(self) -> int:
        return max(self.lengths)

    def exchange(self, stored: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        ends = self.lengths
        for row, start, end, part in zip(
            self.rows, self.starts, ends, new[0].split(self.counts, dim=1), strict=True
        ):
            stored[row, :, start:end] = part
            if not start:
                stored[row, :, end:] = 0
        if not any(self.starts):
            return new
        known = [stored[row, :, :end] for row, end in zip(self.rows, ends, strict=True)]
        return (known[0] if len(known) == 1 else torch.cat(known, dim=1))[None]


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, (rows, heads, positions, width), where the layer computes.

    It grows by blocks as the longest row does, so memory is taken only when it is needed.
    """

    is_sliding = False

    def __init__(self, cache: SlotCache) -> None:
        super().__init__()
        self.cache = cache

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make room for the pass in progress."""
        self.keys = self._grown(self.keys, key_states)
        self.values = self._grown(self.values, value_states)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Exchange this pass's keys and values, as its access says."""
        access = self.cache.access
        assert access is not None, "a forward pass without SlotCache.begin"
        if self.keys is None or self.values is None or self.keys.shape[2] < access.length:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        return access.exchange(self.keys, key_states), access.exchange(self.values, value_states)

    def _grown(self, old: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
        capacity = self.cache.capacity()
        grown = like.new_zeros(self.cache.slots, like.shape[1], capacity, like.shape[3])
        if old is not None:
            grown[:, :, : old.shape[2]] = old
        return grown

    def swap(self, one: int, other: int) -> None:
        """Exchange two rows."""
        for stored in (self.keys, self.values):
            if stored is None:
                return
            kept = stored[one].clone()
            stored[one] = stored[other]
            stored[other] = kept

    def get_seq_length(self) -> int:
        return self.cache.access.past if self.cache.access else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return (self.cache.access.length if self.cache.access else query_length), 0

    def get_max_length(self) -> int:
        return self.cache.max_length

    # The name of get_max_length before transformers 5.20.
    get_max_cache_shape = get_max_length


class SlotCache(Cache):
    """The KV cache of one group, as ``past_key_values`` of a transformers model.

    Before each forward pass ``begin`` says which rows it is about. ``layers`` counts the layers of the
    model (or of the stage) that holds it.
    """

    def __init__(self, layers: int, slots: int, max_length: int) -> None:
        self.slots = slots
        self.max_length = max_length
        self.access: Access | None = None
        self._row_of = list(range(slots))
        self._slot_in = list(range(slots))
        self._layers = [SlotLayer(self) for _ in range(layers)]
        super().__init__(layers=[*self._layers])

    @property
    def nbytes(self) -> int:
        """Of keys and values, room for tokens to come included. It grows and never shrinks."""
        stored = [tensor for layer in self._layers for tensor in (layer.keys, layer.values)]
        return sum(tensor.nbytes for tensor in stored if tensor is not None)

    def begin(self, access: Access) -> None:
        """The next forward pass is about ``access``. Raises ValueError if a row would be too long."""
        if access.length > self.max_length:
            raise ValueError(f"{access.length} positions in slots of {self.max_length}")
        self.access = access

    def capacity(self) -> int:
        """Positions to hold when the pass in progress needs more room."""
        needed = self.access.length if self.access else 1
        return min(self.max_length, -(-needed // BLOCK) * BLOCK)

    def rows(self, slots: list[int]) -> list[int]:
        """Where the cache keeps these slots."""
        return [self._row_of[slot] for slot in slots]

    def gather(self, groups: list[list[int]]) -> None:
        """Bring the slots of these groups to the first rows, group after group.

        They are then read in place, where a choice of rows would be copied at every step. Rows move only
        when the groups change.
        """
        first = 0
        for slots in groups:
            rows, members = range(first, first + len(slots)), set(slots)
            strays = [slot for slot in slots if self._row_of[slot] not in rows]
            for row in rows:
                if self._slot_in[row] not in members:
                    self._swap(row, self._row_of[strays.pop()])
            first = rows.stop

    def _swap(self, one: int, other: int) -> None:
        for layer in self._layers:
            layer.swap(one, other)
        slots = self._slot_in
        slots[one], slots[other] = slots[other], slots[one]
        self._row_of[slots[one]], self._row_of[slots[other]] = one, other
