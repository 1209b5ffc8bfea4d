"""Pages: the streamed parts of a model computed with where the page cache has them, instead of a Reader's copies."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from launcher.model.reader import Slot, Unit
from launcher.model.weight_files import Range, WeightFiles

THERE = 3e9  # bytes per second: pages that come quicker were in the page cache, or as good as there


@dataclass(frozen=True)
class _Part:
    """A unit: its parameters as views of their files, and where these lie."""

    values: list[tuple[Slot, torch.Tensor]]
    ranges: list[Range]

    @cached_property
    def nbytes(self) -> int:
        return sum(place.end - place.begin for place in self.ranges)

    @classmethod
    def of(cls, unit: Unit, files: WeightFiles) -> _Part | None:
        values = []
        for slot in unit.slots:
            value = files.in_place(slot.recipe)
            if value is None:
                return None
            values.append((slot, value))
        tensors = (source.tensor for slot in unit.slots for source in slot.recipe.sources)
        found: list[Range] = []
        for tensor in sorted(tensors, key=lambda tensor: (tensor.file, tensor.begin)):
            last = found[-1] if found else None
            if last and last.file == tensor.file and last.end == tensor.begin:
                found[-1] = Range(last.file, last.begin, tensor.end)
            else:
                found.append(Range(tensor.file, tensor.begin, tensor.end))
        return cls(values, found)


class Pages:
    """``take`` and ``release`` the units in their order, again and again, as with a Reader.

    There is no thread: mostly all is in the page cache. For a whole round at first, and behind every unit that was not
    there, the kernel is told of the one that is ``ahead``, to fetch it meanwhile; telling it of pages that are there would
    take longer than mapping them.
    """

    def __init__(self, parts: Sequence[_Part], files: WeightFiles, ahead: int) -> None:
        self._parts, self._files, self._ahead = parts, files, min(ahead, len(parts) - 1)
        self.held = max(part.nbytes for part in parts)  # bytes: one is mapped at a time
        self._next = 0
        self._unsure = len(parts)
        files.settle([place for part in parts for place in part.ranges])

    @classmethod
    def of(cls, units: Sequence[Unit], files: WeightFiles, ahead: int) -> Pages | None:
        """None unless all parameters of all ``units`` can stay in their files."""
        parts = [_Part.of(unit, files) for unit in units]
        whole = [part for part in parts if part is not None]
        return cls(whole, files, ahead) if len(whole) == len(parts) else None

    def take(self) -> None:
        """Give the next unit's modules their weights. Raises WeightsError."""
        if self._ahead and self._unsure:
            self._unsure -= 1
            self._expect((self._next + self._ahead) % len(self._parts))
        part, began = self._parts[self._next], time.perf_counter()
        for place in part.ranges:
            self._files.bring(place)
        if part.nbytes < (time.perf_counter() - began) * THERE:
            self._unsure = len(self._parts)
        for slot, value in part.values:
            slot.put(value)

    def release(self) -> None:
        """Take them away again; nothing that was launched is still running."""
        part = self._parts[self._next]
        for slot, _ in part.values:
            slot.clear()
        for place in part.ranges:
            self._files.leave(place)
        self._next = (self._next + 1) % len(self._parts)

    def close(self) -> None:
        """There is nothing to end."""

    def _expect(self, number: int) -> None:
        for place in self._parts[number].ranges:
            self._files.expect(place)
