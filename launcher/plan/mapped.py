"""MappedReplica: one copy of a model on one rank's own devices, spread by a device map. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from launcher.plan.memory import RESERVE, Share, activation_bytes, shares
from launcher.plan.placement import (
    Device,
    DeviceMap,
    balanced_memory,
    check_device_map,
    infer_device_map,
)
from launcher.plan.plan import Batch
from launcher.plan.replica import Replica

WHERE = "parallel.options.device_map"


@dataclass(frozen=True)
class Split:
    """How a device map is made: a rule of accelerate's with the memory that it may use, or by hand.

    ``max_memory`` None leaves it to the plan: as much as is left beside the cache of the layers there.
    """

    device_map: Literal["sequential", "auto", "balanced", "balanced_low_0"] | DeviceMap
    max_memory: Mapping[Device, int] | None = None
    unsplit: tuple[str, ...] = ()

    @property
    def spills(self) -> bool:
        """Whether layers may go to the CPU's memory and the disk. Only if asked: it is slow."""
        given = self.device_map if isinstance(self.device_map, dict) else self.max_memory or {}
        named = set(given.values()) if isinstance(self.device_map, dict) else set(given)
        return bool(named & {"cpu", "disk"})


@dataclass(frozen=True)
class MappedReplica(Replica):
    """``gpus`` is the number of a rank's own GPUs of ``gpu_bytes`` each, 0 on a CPU; ``cpu_bytes`` is the
    rank's share of its node's memory."""

    split: Split
    gpus: int
    gpu_bytes: int
    cpu_bytes: int

    @property
    def kind(self) -> str:
        return "cuda" if self.gpus else "cpu"

    def capacity(self, device: Device) -> int | None:
        """Bytes; None for the disk, which is not counted."""
        if device == "disk":
            return None
        return self.cpu_bytes if device == "cpu" else self.gpu_bytes

    def name(self, device: Device) -> str:
        return f"GPU {device} of a replica" if isinstance(device, int) else "the CPU's memory"

    def device_map(self, batch: Batch) -> DeviceMap:
        """Where each module goes. What finds no room, and may not spill, is put where it makes a GPU overfull."""
        placed = self._placed(batch)
        if not self._lacks_room(placed):
            return placed
        if self.split.max_memory is None:
            outline = self.model.outline
            even = balanced_memory(outline, dict.fromkeys(range(self.gpus), 2 * outline.root.size))
            return infer_device_map(outline, even)
        last = max(device for device in self.split.max_memory if isinstance(device, int))
        return {name: last if device == "disk" else device for name, device in placed.items()}

    def _placed(self, batch: Batch) -> DeviceMap:
        """By the rule or by hand; what finds no room is on disk."""
        outline, split = self.model.outline, self.split
        if isinstance(split.device_map, dict):
            return check_device_map(outline, split.device_map, WHERE)
        if not self.gpus and not split.spills:
            return {"": "cpu"}
        memory = split.max_memory if split.max_memory is not None else self._room(batch)
        if split.device_map != "sequential":
            low_zero = split.device_map == "balanced_low_0"
            memory = balanced_memory(outline, memory, split.unsplit, low_zero)
        return infer_device_map(outline, memory, split.unsplit)

    def _lacks_room(self, placed: DeviceMap) -> bool:
        return not self.split.spills and "disk" in placed.values()

    def shares(self, batch: Batch) -> dict[Device, Share]:
        """What each device in use takes."""
        return shares(self.model, batch, self.device_map(batch), self.kind)

    def fits(self, batch: Batch) -> bool:
        """Whether every module has its place, and every device holds what is put there."""
        return not self._lacks_room(self._placed(batch)) and super().fits(batch)

    def gpus_needed(self, batch: Batch, at_most: int = 64) -> int | None:
        """The fewest GPUs like these that hold ``batch``; None if it is more than ``at_most``."""
        for gpus in range(1, at_most + 1):
            if replace(self, gpus=gpus, split=Split("sequential")).fits(batch):
                return gpus
        return None

    def _room(self, batch: Batch) -> dict[Device, int]:
        """What weights may take of each GPU, so that the cache of the layers there fits beside them."""
        layers = self.model.outline.layers
        weights = sum(layer.weights for layer in layers) // len(layers)
        cache = batch.groups * batch.slots * batch.max_length * self.model.kv_bytes_per_layer
        free = self.gpu_bytes - RESERVE["cuda"] - activation_bytes(self.model, batch, has_head=True)
        room = int(max(0, free) * weights / (weights + cache))
        memory: dict[Device, int] = dict.fromkeys(range(self.gpus), room)
        # The rule keeps room on the first GPU for a layer that is brought back to it; here none is.
        memory[0] += max(layer.size for layer in layers)
        return memory
