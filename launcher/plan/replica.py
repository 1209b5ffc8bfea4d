"""Replica: one copy of the model, however it is spread: what of a batch fits beside its weights. No torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from launcher.job.spec import BatchSpec
from launcher.plan.memory import Model, Share, most
from launcher.plan.placement import Device
from launcher.plan.plan import Batch

SHORTEST = 2048  # tokens: what a batch is cut to at most when its longest row does not fit


@dataclass(frozen=True)
class Fitted:
    """A batch as far as it fits: ``slots`` is the largest number that does, 0 if not even one."""

    batch: Batch
    slots: int
    fits: bool


@dataclass(frozen=True)
class Replica(ABC):
    """What a strategy has to say of its way of spreading ``model``, and what follows from it."""

    model: Model

    @abstractmethod
    def shares(self, batch: Batch) -> dict[Device, Share]:
        """What each device in use takes."""

    @abstractmethod
    def capacity(self, device: Device) -> int | None:
        """Bytes of a device; None where they are not counted."""

    @abstractmethod
    def name(self, device: Device) -> str:
        """What a person calls a device."""

    def overfull(self, batch: Batch) -> list[tuple[Share, int]]:
        """The devices whose share is more than they have, with the bytes that are missing."""
        short = []
        for share in self.shares(batch).values():
            capacity = self.capacity(share.device)
            if capacity is not None and share.peak > capacity:
                short.append((share, share.peak - capacity))
        return short

    def fits(self, batch: Batch) -> bool:
        """Whether every device holds what is put there."""
        return not self.overfull(batch)

    def most_slots(self, batch: Batch) -> int:
        """The largest number of slots up to that of ``batch`` that fits; 0 if not even one does."""
        return most(
            1, batch.slots, lambda slots: self.fits(batch.model_copy(update={"slots": slots}))
        )

    def fit(self, batch: Batch, asked: BatchSpec) -> Fitted:
        """``batch`` with the slots that are ``asked`` for, or the most that fit.

        Where not even one does because of the longest row, the length is halved until one does: a row that no
        slot can hold is that row's error, not the end of the run.
        """
        slots = self.most_slots(batch)
        while slots == 0 and asked.max_length == "auto" and batch.max_length > SHORTEST:
            shorter = max(SHORTEST, batch.max_length // 2)
            batch = batch.model_copy(update={"max_length": shorter})
            slots = self.most_slots(batch)
        chosen = max(1, slots) if asked.slots == "auto" else asked.slots
        fits = slots > 0 if asked.slots == "auto" else slots == asked.slots
        return Fitted(batch.model_copy(update={"slots": chosen}), slots, fits)
