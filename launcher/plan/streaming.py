"""How a model that is streamed shares out a memory budget: buffers, caches, what stays, and the batch. No torch.

The figures follow model/streamed.py: a sweep reads what does not stay, runs one step of every group through
each layer, and writes and reads the caches of groups that are spilled.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from launcher.plan.batching import MOST_SLOTS
from launcher.plan.cost import usual_load, whole_model
from launcher.plan.memory import RESERVE, Model, activation_bytes
from launcher.plan.plan import Batch, Streaming
from launcher.plan.replay import Line, Replayed, replay
from launcher.plan.replica import SHORTEST
from launcher.plan.subject import Subject

MOST_SEQUENCES = {"cuda": 4096, "cpu": 256}  # more make a sweep longer by as much as they bring
CHUNKS = (4096, 1024, 512, 128, 32)  # tokens of prompts per group and sweep
BUFFERS = (2, 1)  # reading one layer ahead, or none
HOST_SHARE = 0.5  # of a node's memory, for caches that a GPU has no room for
WORTH = (
    1.15  # as much faster a larger batch has to be: it takes memory and disk, and rows wait longer
)


@dataclass(frozen=True)
class Sizes:
    """Bytes of what is streamed: layers, and the head with the norm before it. A head that is the embedding has
    a copy here, since of the embedding itself only the tokens' rows are read."""

    layers: tuple[int, ...]
    head: int

    @classmethod
    def of(cls, model: Model) -> Sizes:
        leaves = model.outline.root.leaves()
        layers = tuple(leaf.weights for leaf in leaves if leaf.layer is not None)
        last = max(number for number, leaf in enumerate(leaves) if leaf.layer is not None)
        head = sum(leaf.weights for leaf in leaves[last + 1 :])
        if model.outline.tied:
            head += model.dims.vocab * model.dims.hidden * model.width
        return cls(layers, head)


@dataclass(frozen=True)
class Draft:
    """A way to run within a budget. ``step_s`` are seconds of one step of one group. ``buffers`` None: the whole
    model is loaded, nothing is streamed."""

    subject: Subject
    sizes: Sizes
    step_s: float
    batch: Batch
    buffers: int | None
    kept: int  # groups whose cache stays
    layers: int = 0  # that stay, the first ones
    head: bool = False

    @property
    def read_bytes(self) -> int:
        """Per sweep."""
        if self.buffers is None:
            return 0
        return sum(self.sizes.layers[self.layers :]) + self.sizes.head * (not self.head)

    @property
    def weights(self) -> int:
        """Bytes of weights that stay, and of buffers."""
        if self.buffers is None:
            tied = self.sizes.head * bool(self.subject.model.outline.tied)  # packed, it is a copy
            return self.subject.model.outline.root.weights + tied
        read = [*self.sizes.layers[self.layers :], *([] if self.head else [self.sizes.head])]
        resident = sum(self.sizes.layers[: self.layers]) + self.sizes.head * self.head
        return resident + self.buffers * max(read, default=0)

    @cached_property
    def kv(self) -> int:
        """Caches of the groups that are kept, and one layer's while it comes, grows or goes."""
        layer = self.batch.slots * self.batch.max_length * self.subject.model.kv_bytes_per_layer
        moving = 1 if self.kept == self.batch.groups else 3
        return layer * (self.kept * self.subject.model.dims.layers + moving)

    @property
    def spilled(self) -> int:
        """Bytes of the caches that are not kept."""
        batch = self.batch
        each = batch.slots * batch.max_length * self.subject.model.kv_bytes_per_token
        return (batch.groups - self.kept) * each

    @cached_property
    def activations(self) -> int:
        """Of one forward pass, and the hidden states of all groups' steps."""
        batch, model = self.batch, self.subject.model
        one = activation_bytes(model, batch, has_head=True)
        tokens = (batch.groups + 2) * (batch.prefill_chunk + batch.slots)
        return one + tokens * model.dims.hidden * model.width

    @property
    def peak(self) -> int:
        return self.weights + self.kv + self.activations + RESERVE[self.subject.machines.device]

    @property
    def compute_s(self) -> float:
        """Of one sweep; caches that come and go hold it up."""
        return self.batch.groups * self.step_s + self.moved_s

    @property
    def moved_s(self) -> float:
        """Of one sweep: caches that come and go."""
        rates = self.subject.rates
        on_disk = self.subject.machines.device == "cpu"
        return 2 * self.spilled / (rates.disk if on_disk else rates.link.bytes_per_s)

    @property
    def read_s(self) -> float:
        """Of one sweep."""
        return self.read_bytes / self.subject.rates.disk

    @property
    def reads_ahead(self) -> bool:
        return self.buffers is None or self.buffers > 1

    @property
    def sweep_s(self) -> float:
        if self.reads_ahead:
            return max(self.read_s, self.compute_s)
        return self.read_s + self.compute_s

    @property
    def tokens_per_s(self) -> float:
        """To compare drafts with each other."""
        demand, batch = self.subject.demand, self.batch
        work = self.subject.work(batch)
        prefills = max(1.0, batch.slots * work.mean_prompt / batch.prefill_chunk)
        new = work.mean_new
        rows = min(batch.groups * batch.slots, demand.rows)
        return rows * new / ((new + prefills) * self.sweep_s)

    def replayed(self) -> Replayed:
        """The work of one replica played through, sweep by sweep."""
        subject, read_s = self.subject, self.read_s
        ahead = read_s if self.reads_ahead else 0.0
        line = Line(
            stages=[whole_model(subject)],
            links=[lambda _: 0.0],
            step_s=subject.rates.step_s,
            in_rounds=self.buffers is not None,
            round_s=ahead,
            added_s=read_s - ahead + self.moved_s,
        )
        return replay(line, self.batch, subject.work(self.batch))

    def streaming(self) -> Streaming | None:
        if self.buffers is None:
            return None
        return Streaming(
            layers=self.layers,
            head=self.head,
            buffers=self.buffers,
            groups=self.kept,
            spilled_bytes=self.spilled,
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
            step_s = self._step_s(batch)
            if batch.groups == 1:
                yield Draft(self.subject, self._sizes, step_s, batch, None, 1)
            for buffers, head in itertools.product(self.buffers, (False, True)):
                yield Draft(self.subject, self._sizes, step_s, batch, buffers, 0, head=head)

    @cached_property
    def _sizes(self) -> Sizes:
        return Sizes.of(self.subject.model)

    @cached_property
    def _known(self) -> dict[tuple[int, int], float]:
        return {}

    def _step_s(self, batch: Batch) -> float:
        """It depends on the slots and their length alone, or nearly."""
        subject, key = self.subject, (batch.slots, batch.max_length)
        if key not in self._known:
            load = usual_load(subject.work(batch), batch)
            self._known[key] = whole_model(subject)(load)[0]
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
        rows = -(-self.subject.demand.rows // self.subject.spec.parallel.replicas)
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
