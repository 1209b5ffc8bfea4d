"""How a model that is streamed shares out a memory budget: buffers, caches, what stays, and the batch. No torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from launcher.plan.batching import MOST_SLOTS
from launcher.plan.cost import usual_load, whole_model
from launcher.plan.plan import Batch
from launcher.plan.replica import SHORTEST
from launcher.plan.streaming import Draft, Sizes
from launcher.plan.subject import Subject

MOST_SEQUENCES = {"cuda": 4096, "cpu": 256}  # more make a sweep longer by as much as they bring
CHUNKS = (4096, 1024, 512, 128, 32)  # tokens of prompts per group and sweep
BUFFERS = (2, 1)  # reading one layer ahead, or none
HOST_SHARE = 0.5  # of a node's memory, for caches that a GPU has no room for
FREE_SHARE = 0.9  # of what is free on a disk, for the same
WORTH = (
    1.15  # as much faster a larger batch has to be: it takes memory and disk, and rows wait longer
)


@dataclass(frozen=True)
class Budget:
    """``memory`` of a rank's device, ``host`` for caches beside it (None: a file), and the ``buffers`` to try."""

    subject: Subject
    memory: int
    host: int | None
    buffers: tuple[int, ...] = BUFFERS

    def best(self) -> Draft | None:
        """The fastest draft that fits, with the longest slots that do; None if none does. Of drafts that are about
        as fast, the first: the smaller batch, whole before streamed, reading ahead before not."""
        for length in self._lengths():
            fitting = [draft for draft in map(self._fill, self._bare(length)) if draft]
            if not fitting:
                continue
            best = fitting[0]
            for draft in fitting:
                if draft.tokens_per_s > WORTH * best.tokens_per_s:
                    best = draft
            if best.buffers is not None:
                return best
            # Where all of the model stays, more slots cost nothing but the memory that is there.
            return max(
                (draft for draft in fitting if draft.buffers is None),
                key=lambda draft: (draft.batch.slots, draft.batch.prefill_chunk),
            )
        return None

    def smallest(self) -> Draft:
        """The draft that takes least."""
        return min(
            (draft for length in self._lengths() for draft in self._bare(length)),
            key=lambda draft: draft.peak,
        )

    def _fill(self, draft: Draft) -> Draft | None:
        """``draft`` with the memory that it leaves given to caches, then to weights. None if it does not fit."""
        if draft.buffers is None:
            return draft if draft.peak <= self.memory else None
        full = replace(draft, kept=draft.batch.groups)
        if full.peak > self.memory:
            room = self.memory - draft.peak
            each = max(1, full.kv - draft.kv) / draft.batch.groups
            full = replace(draft, kept=max(0, min(draft.batch.groups - 1, int(room // each))))
        if full.peak > self.memory or (self.host is not None and full.spilled > self.host):
            return None
        return self._residents(full)

    def _residents(self, draft: Draft) -> Draft:
        """As many layers, then the head, as there is room for."""
        left = self.memory - draft.peak
        count = 0
        for size in draft.sizes.layers:
            if size > left:
                break
            left -= size
            count += 1
        draft = replace(draft, layers=count)
        headed = replace(draft, head=True)
        return headed if headed.peak <= self.memory else draft

    def _bare(self, length: int) -> Iterator[Draft]:
        """Every draft with nothing kept that need not be: batches from small to large."""
        for batch in self._batches(length):
            if batch.groups == 1:
                step_s = self._step_s(batch, whole=True)
                yield Draft(self.subject, self._sizes, step_s, batch, None, 1)
            step_s = self._step_s(batch)
            for buffers, head in itertools.product(self.buffers, (False, True)):
                yield Draft(self.subject, self._sizes, step_s, batch, buffers, 0, head=head)

    @cached_property
    def _sizes(self) -> Sizes:
        return Sizes.of(self.subject)

    @cached_property
    def _known(self) -> dict[tuple[int, int, bool], float]:
        return {}

    def _step_s(self, batch: Batch, whole: bool = False) -> float:
        """It depends on the slots and their length alone, or nearly, and whether the ``whole`` model stays."""
        subject, key = self.subject, (batch.slots, batch.max_length, whole)
        if key not in self._known:
            rates = subject.rates if whole else subject.rates.unpacked
            load = usual_load(subject.work(batch), batch)
            self._known[key] = whole_model(subject, rates)(load)[0]
        return self._known[key]

    def _lengths(self) -> list[int]:
        """Tokens of a slot: what the longest row needs, and if it may be, less."""
        lengths = [self.subject.largest_batch(1).max_length]
        while self.subject.spec.batch.max_length == "auto" and lengths[-1] > SHORTEST:
            lengths.append(max(SHORTEST, lengths[-1] // 2))
        return lengths

    def _batches(self, length: int) -> list[Batch]:
        """By the number of sequences; of as many, few large groups first."""
        asked, device = self.subject.spec.batch, self.subject.machines.device
        rows = self.subject.demand.share(self.subject.spec.parallel.replicas)
        most = min(MOST_SEQUENCES[device], max(1, rows))
        many = _powers(min(MOST_SLOTS[device], most)) if asked.slots == "auto" else [asked.slots]
        shapes = [
            (slots, groups)
            for slots in many
            for groups in (
                _powers(max(1, -(-most // slots))) if asked.groups == "auto" else [asked.groups]
            )
        ]
        return [
            Batch(groups=groups, slots=slots, max_length=length, prefill_chunk=chunk)
            for slots, groups in sorted(shapes, key=lambda shape: (shape[0] * shape[1], shape[1]))
            for chunk in self._chunks(slots * length)
        ]

    def _chunks(self, tokens: int) -> list[int]:
        asked = self.subject.spec.batch.prefill_chunk
        if asked != "auto":
            return [min(asked, tokens)]
        return sorted({min(chunk, tokens) for chunk in CHUNKS}, reverse=True)


def _powers(most: int) -> list[int]:
    """1, 2, 4 ... and ``most`` itself."""
    return sorted({1 << bit for bit in range(most.bit_length())} | {most})
