"""Reader: a thread that reads the streamed parts of a model ahead of the computation, round after round."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from launcher.model.direct import put
from launcher.model.recipe import Recipe
from launcher.model.weight_files import WeightFiles

ALIGNED = 64  # bytes: where a parameter may begin in a buffer


@dataclass(frozen=True)
class Slot:
    """A parameter of a unit: whose it is, and where in a buffer it lies."""

    module: nn.Module
    name: str
    recipe: Recipe
    offset: int

    def put(self, value: torch.Tensor) -> None:
        """Make ``value`` the module's parameter, or its buffer if it is one."""
        put(self.module, self.name, nn.Parameter(value, requires_grad=False))

    def clear(self) -> None:
        """Leave the module without it."""
        self.put(torch.empty(self.recipe.shape, dtype=self.recipe.dtype, device="meta"))


@dataclass(frozen=True)
class Unit:
    """Modules whose weights come and go together: a layer, or norm and head."""

    slots: tuple[Slot, ...]

    @classmethod
    def of(cls, model: nn.Module, prefixes: Sequence[str], found: Mapping[str, Recipe]) -> Unit:
        """What the state dict of ``model`` holds below ``prefixes``."""
        slots, offset = [], 0
        for key, recipe in found.items():
            if any(key.startswith(f"{prefix}.") for prefix in prefixes):
                parent, _, name = key.rpartition(".")
                slots.append(Slot(model.get_submodule(parent), name, recipe, offset))
                offset += -(-recipe.nbytes // ALIGNED) * ALIGNED
        return cls(tuple(slots))

    @property
    def nbytes(self) -> int:
        """Of a buffer that holds it."""
        last = self.slots[-1]
        return last.offset + last.recipe.nbytes

    def load(self, files: WeightFiles, device: torch.device) -> None:
        """Read it for good."""
        for slot in self.slots:
            slot.put(files.load(slot.recipe, device))

    def fill(self, files: WeightFiles, buffer: torch.Tensor) -> None:
        """Read it into ``buffer``, bytes on the CPU."""
        for slot in self.slots:
            files.fill(slot.recipe, _part(buffer, slot))

    def attach(self, buffer: torch.Tensor) -> None:
        """Have the modules compute with what is in ``buffer``."""
        for slot in self.slots:
            slot.put(_part(buffer, slot).view(slot.recipe.shape))

    def detach(self) -> None:
        """Leave the modules without weights."""
        for slot in self.slots:
            slot.clear()


def _part(buffer: torch.Tensor, slot: Slot) -> torch.Tensor:
    return buffer[slot.offset : slot.offset + slot.recipe.nbytes].view(slot.recipe.dtype)


class Reader:
    """Reads ``units`` in their order, again and again, into ``buffers`` buffers as these become free.

    One user calls ``take`` and ``release`` in turns. On CUDA the buffers are the device's: bytes come there from
    pinned memory on a stream of their own while the device computes.
    """

    def __init__(
        self, units: Sequence[Unit], files: WeightFiles, buffers: int, device: torch.device
    ) -> None:
        self._units, self._files = units, files
        self.held = 0  # bytes of its buffers
        self._closing = threading.Event()
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[Any] = queue.SimpleQueue()
        size = max(unit.nbytes for unit in units)
        kind = _CudaBuffer if device.type == "cuda" else _HostBuffer
        for _ in range(buffers):
            self._free.put(kind(size, device))
            self.held += size
        self._taken: Any = None
        self._thread = threading.Thread(target=self._run, name="weights", daemon=True)
        self._thread.start()

    def take(self) -> None:
        """Wait for the next unit and give its modules their weights. Raises what reading it raised."""
        found = self._ready.get()
        if isinstance(found, BaseException):
            self._ready.put(found)
            raise found
        unit, buffer = found
        unit.attach(buffer.arrived())
        self._taken = found

    def release(self) -> None:
        """Take its weights away from the unit; what was launched with them may still run."""
        unit, buffer = self._taken
        unit.detach()
        buffer.used()
        self._free.put(buffer)

    def close(self) -> None:
        """End the thread."""
        self._closing.set()
        self._free.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            for unit in itertools.cycle(self._units):
                buffer = self._free.get()
                if buffer is None or self._closing.is_set():
                    return
                unit.fill(self._files, buffer.to_fill())
                buffer.filled()
                self._ready.put((unit, buffer))
        except BaseException as error:  # noqa: BLE001 - raised again where the weights are waited for
            self._ready.put(error)


class _HostBuffer:
    """Memory of the CPU, where the computation is as well."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._bytes = torch.empty(size, dtype=torch.uint8)

    def to_fill(self) -> torch.Tensor:
        return self._bytes

    def filled(self) -> None:
        """It is where it is used."""

    def arrived(self) -> torch.Tensor:
        return self._bytes

    def used(self) -> None:
        """Nothing that was launched is still running."""


class _CudaBuffer:
    """Pinned memory and its copy on a GPU, each refilled only when the other is done with it."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._host = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        self._bytes = torch.empty(size, dtype=torch.uint8, device=device)
        self._device, self._stream = device, torch.cuda.Stream(device)
        self._copied, self._done = torch.cuda.Event(), torch.cuda.Event()

    def to_fill(self) -> torch.Tensor:
        self._copied.synchronize()
        return self._host

    def filled(self) -> None:
        self._stream.wait_event(self._done)
        with torch.cuda.stream(self._stream):
            self._bytes.copy_(self._host, non_blocking=True)
            self._copied.record(self._stream)

    def arrived(self) -> torch.Tensor:
        torch.cuda.current_stream(self._device).wait_event(self._copied)
        return self._bytes

    def used(self) -> None:
        self._done.record(torch.cuda.current_stream(self._device))
