"""StagedReplica: one copy of the model as stages, one rank each: what each takes, and how busy it will be. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

from launcher.plan.cost import Exchange, StageCost, layer_costs, usual_load
from launcher.plan.course import Line, Load, Replayed
from launcher.plan.memory import Model, Share, shares
from launcher.plan.outline import Module, Outline
from launcher.plan.placement import Device
from launcher.plan.plan import Batch
from launcher.plan.replay import replay
from launcher.plan.replica import Fitted, Replica
from launcher.plan.shards import degrees
from launcher.plan.simulate import Pipe, Schedule, Simulated, simulate
from launcher.plan.split import balanced, spans
from launcher.plan.subject import Subject

RECEIVED = 2  # messages that a stage has room for: the one it computes on and the next one


@dataclass(frozen=True)
class StagedReplica(Replica):
    """``counts``: layers of each stage; ``rank_bytes``: memory of each rank's device of ``kind`` cuda or cpu.

    Devices are numbered like stages.
    """

    counts: tuple[int, ...]
    rank_bytes: int
    kind: str

    def shares(self, batch: Batch) -> dict[Device, Share]:
        """What each stage takes. The last one of a tied model holds the embedding, too."""
        model, last = self.model, len(self.counts) - 1
        if last:
            model = replace(model, outline=_with_own_head(model.outline))
        found = shares(model, batch, self._device_map(), self.kind)
        tokens = max(batch.slots, batch.prefill_chunk)
        message = tokens * model.dims.hidden * model.width
        buffers = {
            stage: message * (RECEIVED * (stage > 0) + batch.groups * (stage < last))
            for stage in range(last + 1)
        }
        return {
            stage: replace(share, activations=share.activations + buffers[int(stage)])
            for stage, share in found.items()
        }

    def capacity(self, device: Device) -> int:
        return self.rank_bytes

    def name(self, device: Device) -> str:
        return f"stage {device}"

    def _device_map(self) -> dict[str, Device]:
        """The modules before the layers are on the first stage, those behind them on the last."""
        stages = [stage for stage, count in enumerate(self.counts) for _ in range(count)]
        found: dict[str, Device] = {}
        stage = 0
        for leaf in self.model.outline.root.leaves():
            if leaf.layer is not None:
                stage = stages[leaf.layer]
            found[leaf.name] = stage
        return found


@dataclass(frozen=True)
class Draft:
    """A way to run the stages: what fits, and how busy they would be. ``exchange`` is the mean share of their
    time in which the ranks of a stage add up what they computed."""

    replica: StagedReplica
    fitted: Fitted
    simulated: Simulated
    exchange: float

    @property
    def tokens_per_s(self) -> float:
        """Of one replica, to compare drafts with each other."""
        batch = self.fitted.batch
        return batch.groups * batch.slots * self.simulated.rounds / self.simulated.seconds


@dataclass(frozen=True)
class Drafting:
    """What drafts of one subject have in common. ``far`` says of each stage whether the next one (of the last
    stage: the first) is on another node, ``torn`` whether a stage's ranks are on several; ``layers`` are counts
    by hand."""

    subject: Subject
    rank_bytes: int
    far: tuple[bool, ...]
    torn: bool = False
    layers: tuple[int, ...] | None = None

    def draft(self, groups: int) -> Draft:
        """The best cut for ``groups`` groups: the one whose slowest stage is fastest, or where that does not fit
        the one whose fullest stage is emptiest."""
        batch = self.subject.largest_batch(groups)
        if self.layers is not None:
            return self._fit(self.layers, batch)
        found = self._fit(self._by_time(batch), batch)
        # What a layer takes beside the head depends on the number of slots that turned out to fit.
        found = self._fit(self._by_time(found.fitted.batch), batch)
        if found.fitted.fits:
            return found
        other = self._fit(self._by_weight(), batch)
        return other if other.fitted.fits else found

    def stages_needed(self, batch: Batch, at_most: int = 64) -> int | None:
        """The fewest stages that hold ``batch``, more than there are; None if it is more than ``at_most``."""
        most = min(at_most, len(self.subject.part.outline.layers))
        for stages in range(len(self.far) + 1, most + 1):
            if self._replica(self._by_weight(stages)).fits(batch):
                return stages
        return None

    def shards_needed(self, batch: Batch) -> int | None:
        """The fewest shards per stage that hold ``batch``, more than there are; None if that is too many."""
        subject = self.subject
        for count in degrees(subject.checkpoint):
            parallel = subject.spec.parallel.model_copy(update={"tensor": count})
            spec = subject.spec.model_copy(update={"parallel": parallel})
            part = replace(subject, spec=spec).part
            counts = tuple(self._by_weight())
            replica = StagedReplica(part, counts, self.rank_bytes, subject.machines.device)
            if count > subject.shards.count and replica.fits(batch):
                return count
        return None

    def _fit(self, counts: Sequence[int], batch: Batch) -> Draft:
        replica = self._replica(counts)
        fitted = replica.fit(batch, self.subject.spec.batch)
        pipe, computing = self._pipe(counts, fitted.batch)
        plain = simulate(pipe)
        simulated = _exchanging(plain, computing)
        exchange = plain.utilization - simulated.utilization
        return Draft(replica, fitted, simulated, exchange)

    def _replica(self, counts: Sequence[int]) -> StagedReplica:
        machines = self.subject.machines
        return StagedReplica(self.subject.part, tuple(counts), self.rank_bytes, machines.device)

    def replayed(self, draft: Draft) -> Replayed:
        """The work of one replica played through, filling and draining included."""
        costs = self._stages(draft.replica.counts)
        schedule = self.subject.spec.parallel.schedule
        batch = draft.fitted.batch
        rates = self.subject.rates
        line = Line(
            costs,
            self._links(costs),
            rates.step_s,
            in_rounds=schedule == "gpipe",
            message_s=rates.message_s if len(costs) > 1 else 0.0,
        )
        return replay(line, batch, self.subject.work(batch))

    def _pipe(self, counts: Sequence[int], batch: Batch) -> tuple[Pipe, list[float]]:
        """The stages as they are simulated: a usual step takes so long. And the part of each stage's time in
        which it computes; in the rest its ranks exchange what they computed."""
        costs, load = self._stages(counts), usual_load(self.subject.work(batch), batch)
        taken = [cost(load) for cost in costs]
        schedule: Schedule = self.subject.spec.parallel.schedule
        link_s = [link(load) for link in self._links(costs)]
        pipe = Pipe([sum(each) for each in taken], link_s, batch.groups, schedule)
        return pipe, [computing / (computing + other) for computing, other in taken]

    def _stages(self, counts: Sequence[int]) -> list[StageCost]:
        rates, part, layers = self.subject.rates, self._computed, self.subject.part.outline.layers
        shards, model = self.subject.shards, self.subject.model
        gathered = tuple(width * model.width for width in shards.gathered(model.dims))
        lines = (
            (rates.far_all_reduce, rates.far_gather)
            if self.torn
            else (rates.all_reduce, rates.gather)
        )
        found: list[StageCost] = []
        for first, last in spans(counts):
            cost = StageCost.of(
                part,
                layers[first : last + 1],
                rates,
                has_head=last + 1 == len(layers),
                exchange=Exchange(shards.count, *lines, gathered) if shards.count > 1 else None,
            )
            found.append(next((other for other in found if other == cost), cost))
        return found

    def _links(self, costs: Sequence[StageCost]) -> list[Callable[[Load], float]]:
        if len(costs) == 1:
            return [lambda _: 0.0]
        rates = self.subject.rates

        @cache  # one object for all that are alike: a replay asks it once per step
        def link(far: bool, last: bool) -> Callable[[Load], float]:
            line = rates.far_link if far else rates.link
            return lambda load: costs[0].link_s(load, line, last)

        return [link(far, stage + 1 == len(costs)) for stage, far in enumerate(self.far)]

    def _by_time(self, batch: Batch) -> list[int]:
        return balanced(self._cost(batch), len(self.far))

    def _by_weight(self, stages: int | None = None) -> list[int]:
        outline = _with_own_head(self.subject.part.outline)
        leaves = outline.root.leaves()
        numbers = [n for n, leaf in enumerate(leaves) if leaf.layer is not None]
        weights = [float(leaf.weights) for leaf in leaves[numbers[0] : numbers[-1] + 1]]
        weights[0] += sum(leaf.weights for leaf in leaves[: numbers[0]])
        weights[-1] += sum(leaf.weights for leaf in leaves[numbers[-1] + 1 :])
        return balanced(weights, stages or len(self.far))

    def _cost(self, batch: Batch) -> list[float]:
        load = usual_load(self.subject.work(batch), batch)
        return layer_costs(self._computed, load, self.subject.rates)

    @property
    def _computed(self) -> Model:
        """A rank's part as it computes: it gets all logits, but makes its own part of them."""
        part, ranks = self.subject.part, self.subject.shards.count
        return replace(part, dims=replace(part.dims, vocab=-(-part.dims.vocab // ranks)))


def _exchanging(simulated: Simulated, computing: Sequence[float]) -> Simulated:
    """``simulated`` where only the ``computing`` part of each stage's time is busy and the rest transfer."""
    stages = tuple(
        replace(stage, busy=part * stage.busy, transfer=stage.transfer + (1 - part) * stage.busy)
        for stage, part in zip(simulated.stages, computing, strict=True)
    )
    return replace(simulated, stages=stages)


def _with_own_head(outline: Outline) -> Outline:
    """The outline of a model whose head has a copy of the embedding that it is tied to."""
    sizes = {leaf.name: leaf.weights for leaf in outline.root.leaves()}
    root = outline.root
    for holder, *others in outline.tied:
        for name in others:
            root = _heavier(root, name, sizes[holder])
    return replace(outline, root=root)


def _heavier(module: Module, name: str, extra: int) -> Module:
    """``module`` where the part of that name weighs ``extra`` more."""
    if all(part.name != name for part in module.walk()):
        return module
    children = tuple(_heavier(child, name, extra) for child in module.children)
    return replace(module, weights=module.weights + extra, children=children)
