"""What a model that is streamed takes and how long its sweeps last, with so much of it in memory. No torch.

The figures follow model/streamed.py: a sweep reads what does not stay, runs one step of every group through
each layer, and writes and reads the caches of groups that are spilled.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from launcher.plan.cost import StageCost
from launcher.plan.course import Held, Line, Load, Replayed
from launcher.plan.memory import BLOCK, RESERVE, activation_bytes
from launcher.plan.outline import Module
from launcher.plan.plan import Batch, Streaming
from launcher.plan.rates import Rates
from launcher.plan.replay import replay
from launcher.plan.subject import Subject

# Seen in runs of benchmarks/predictions.py: of Python and the kernel for a unit whose pages come and go, and of Python
# between the blocks of a step.
PUT_S, BETWEEN_S = 2e-4, 1e-4


@dataclass(frozen=True)
class Sizes:
    """Bytes of what is streamed: layers, and the head with the norm before it. A head that is the embedding has
    a copy here, since of the embedding itself only the tokens' rows are read. ``plain``: they are as in the files."""

    layers: tuple[int, ...]
    head: int
    plain: bool

    @classmethod
    def of(cls, subject: Subject) -> Sizes:
        model = subject.model
        leaves = model.outline.root.leaves()
        layers = tuple(leaf.weights for leaf in leaves if leaf.layer is not None)
        last = max(number for number, leaf in enumerate(leaves) if leaf.layer is not None)
        head = sum(leaf.weights for leaf in leaves[last + 1 :]) + model.tied_bytes
        return cls(layers, head, subject.checkpoint.is_plain(subject.dtype))


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
    def units(self) -> int:
        """Layers, and the head, that are read in every sweep."""
        return len(self.sizes.layers) - self.layers + (not self.head)

    @property
    def resident(self) -> int:
        """Bytes of weights that stay."""
        if self.buffers is None:
            return self.subject.model.outline.root.weights
        return sum(self.sizes.layers[: self.layers]) + self.sizes.head * self.head

    @property
    def loaded(self) -> int:
        """Bytes of weights that are read before the first sweep."""
        return self.resident + self.read_bytes * self.in_place

    @property
    def weights(self) -> int:
        """Bytes of weights that stay, and of buffers, or of mapped pages in their place."""
        if self.buffers is None:
            return self.resident
        read = [*self.sizes.layers[self.layers :], *([] if self.head else [self.sizes.head])]
        return self.resident + self.buffers * max(read, default=0)

    @cached_property
    def kv(self) -> int:
        """Caches of the groups that are kept, and the most that one layer's takes beside them: the old keys or values
        while it grows, and of a group that is spilled what was read, and what it grew to."""
        batch, model = self.batch, self.subject.model
        position = batch.slots * model.kv_bytes_per_layer
        before = (batch.max_length - 1) // BLOCK * BLOCK  # positions, until it grows to its end
        if self.kept == batch.groups:
            moving = before // 2
        else:
            first = min(batch.max_length, -(-batch.prefill_chunk // BLOCK) * BLOCK)
            moving = batch.max_length + max(first, before)
        return position * (self.kept * model.dims.layers * batch.max_length + moving)

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
        tokens = batch.groups * max(batch.prefill_chunk, batch.slots)
        # Where the whole model stays, a tied head is packed, which makes it a copy.
        tied = self.sizes.head * bool(self.buffers is None and model.outline.tied)
        return one + tied + tokens * model.dims.hidden * model.width

    @property
    def peak(self) -> int:
        return self.weights + self.kv + self.activations + RESERVE[self.subject.machines.device]

    @property
    def moved_s(self) -> float:
        """Of one sweep: caches that come and go, as far as their rows have grown."""
        subject, rates = self.subject, self.subject.rates
        longest = subject.work(self.batch).longest
        grown = min(self.batch.max_length, BLOCK * -(-longest // BLOCK))
        size = 2 * self.spilled * grown / self.batch.max_length
        if subject.machines.device == "cuda":
            return size / rates.host_link
        fits = self.spilled < subject.machines.host_bytes // 2
        return size / (rates.cached if fits else rates.disk)

    @property
    def stays_in_memory(self) -> bool:
        """Whether what is read again and again is found in the node's page cache: model/streamed_load.py's rule."""
        return self.read_bytes < self.subject.machines.host_bytes // 2

    @property
    def in_place(self) -> bool:
        """Whether the weights are computed with where the page cache has them: model/pages.py's rule."""
        on_cpu = self.subject.machines.device == "cpu"
        mappable = self.subject.rates.mapped is not None
        return on_cpu and self.stays_in_memory and self.sizes.plain and mappable

    @property
    def read_s(self) -> float:
        """Of one sweep, where nothing else is done. The replicas of a node share its disk."""
        rates = self.subject.rates
        if self.in_place and rates.mapped:
            return self.read_bytes / rates.mapped + PUT_S * self.units
        if self.stays_in_memory:
            return self.read_bytes / rates.cached
        each = max(1, self.subject.spec.parallel.replicas // self.subject.machines.nodes)
        return self.read_bytes / (rates.disk / each)

    def held(self, computed: float) -> Held:
        """What reading and moving add to a sweep that computes so long.

        On CPUs a thread of the rank's own copies, and its core computes the less. Layers that stay give the reader
        time for as many units as there are buffers, and no more.
        """
        units = self.units
        if self.buffers is None or not units:
            return Held(0.0, 0.0, self.moved_s)
        if self.buffers == 1 or self.in_place:
            return Held(0.0, self.read_s, self.moved_s)
        each = computed / (len(self.sizes.layers) + 1)
        rates, on_cpu = self.subject.rates, self.subject.machines.device == "cpu"
        copying = self.read_bytes / rates.cached / rates.threads if on_cpu else 0.0
        late = max(0, units - self.buffers) / units * self.read_s
        seconds = max(self.read_s, computed + copying, computed - max(0, units - 2) * each + late)
        slowed = min(copying, units * each)
        return Held(slowed, seconds - computed - slowed, self.moved_s)

    @property
    def sweep_s(self) -> float:
        computed = self.batch.groups * self.step_s
        return computed + sum(self.held(computed))

    @property
    def tokens_per_s(self) -> float:
        """To compare drafts with each other."""
        demand, batch = self.subject.demand, self.batch
        work = self.subject.work(batch)
        prefills = max(1.0, batch.slots * work.mean_prompt / batch.prefill_chunk)
        new = work.mean_new
        rows = min(batch.groups * batch.slots, demand.sequences)
        return rows * new / ((new + prefills) * self.sweep_s)

    def replayed(self) -> Replayed:
        """The work of one replica played through, sweep by sweep."""
        subject, blocks = self.subject, len(self.sizes.layers) + 1
        between_s = BETWEEN_S * blocks if self.buffers is not None else 0.0
        line = Line(
            stages=[self._cost],
            links=[lambda _: 0.0],
            step_s=subject.rates.step_s + between_s,
            in_rounds=self.buffers is not None,
            held=self.held if self.buffers is not None else None,
        )
        return replay(line, self.batch, subject.work(self.batch))

    def _cost(self, load: Load) -> tuple[float, float]:
        """Seconds of a step."""
        if self.buffers is None:
            return self._costs[0](load)
        return sum(cost(load)[0] for cost in self._costs), 0.0

    @cached_property
    def _costs(self) -> list[StageCost]:
        """Of the parts of a step: layers that stay are packed, those that come and go lie as in their files."""
        subject, layers = self.subject, self.subject.model.outline.layers
        kept, read = subject.rates, subject.rates.unpacked
        if self.buffers is None:
            return [StageCost.of(subject.model, layers, kept, has_head=True)]
        parts: tuple[tuple[list[Module], Rates, bool], ...] = (
            (layers[: self.layers], kept, False),
            (layers[self.layers :], read, False),
            ([], kept if self.head else read, True),
        )
        costs = [StageCost.of(subject.model, some, at, head) for some, at, head in parts]
        return [replace(cost, passes=cost.layers) for cost in costs]

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
