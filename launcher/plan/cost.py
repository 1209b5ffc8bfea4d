"""What a step costs on a stage: reading weights and cache, arithmetic, and what its ranks exchange. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from launcher.plan.course import Load
from launcher.plan.measured import Line
from launcher.plan.memory import Model
from launcher.plan.outline import Module
from launcher.plan.plan import Batch
from launcher.plan.rates import WHOLE_OVER_PARTS, Rates
from launcher.plan.subject import Subject
from launcher.plan.workload import Workload

SAMPLED = 4  # times that logits are written or read until a token is drawn
TOKEN_BYTES = 8


@dataclass(frozen=True)
class Exchange:
    """Of ``ranks`` that share a stage: they add up hidden states twice per layer, and put their logits together, and
    in each layer tensors of ``gathered`` bytes per token."""

    ranks: int
    all_reduce: Line
    gather: Line
    gathered: tuple[float, ...] = ()

    def seconds(self, cost: StageCost, load: Load) -> float:
        """In a step of ``cost``, which has one rank's part of the logits."""
        tokens = load.decoding + load.fed
        adding = 2 * cost.layers * self.all_reduce.seconds(tokens * cost.message)
        together = cost.layers * sum(self.gather.seconds(tokens * size) for size in self.gathered)
        if cost.logits:
            together += self.gather.seconds(load.rows * cost.logits * self.ranks)
        return adding + together


@dataclass(frozen=True)
class StageCost:
    """Some layers on one rank, maybe with the head. ``elements`` of their weights are met by each token, ``size`` is
    their bytes; ``width``: elements of a hidden state and what a layer makes of it; ``queries`` those of a token's
    query; ``cache``: bytes of a position in one layer; ``message``: of a token's hidden state; ``head``: elements of
    the matrix that makes logits, ``logits``: bytes of those of one row; ``exchange``: with the ranks that share it;
    ``passes`` that its layers take, one unless each is run by itself."""

    rates: Rates
    layers: int
    elements: float
    size: float
    width: float
    queries: float
    cache: float
    message: float
    head: float = 0.0
    head_size: float = 0.0
    logits: float = 0.0
    exchange: Exchange | None = None
    passes: int = 1

    @classmethod
    def of(
        cls,
        model: Model,
        layers: Sequence[Module],
        rates: Rates,
        has_head: bool = False,
        exchange: Exchange | None = None,
    ) -> StageCost:
        """``model`` is what the rank has: the whole, or a shard of it."""
        dims = model.dims
        leaves = {leaf.name: leaf.weights for leaf in model.outline.root.leaves()}
        # A head that is the embedding has no weights of its own, but is computed all the same.
        size = leaves.get(model.outline.head) or dims.vocab * dims.hidden * model.width
        return cls(
            rates=rates,
            layers=len(layers),
            elements=sum(_visited(model, layer) for layer in layers),
            size=sum(layer.weights for layer in layers),
            width=dims.hidden + dims.mlp_width,
            queries=dims.heads * dims.head_dim,
            cache=model.kv_bytes_per_layer,
            message=dims.hidden * model.width,
            head=size / model.width if has_head else 0.0,
            head_size=size if has_head else 0.0,
            logits=dims.vocab * model.width if has_head else 0.0,
            exchange=exchange,
        )

    def __call__(self, load: Load) -> tuple[float, float]:
        """Seconds that ``load`` computes, and that the stage's ranks exchange: behind attention, and behind the MLP."""
        rates, tokens = self.rates, load.decoding + load.fed
        attending = rates.attend_s(self.queries, self.cache, load.positions, load.seen)
        each = rates.layer_s + rates.row_s * load.decoding + rates.width_s(tokens * self.width)
        computing = self.passes * rates.pass_s + self.layers * (each + attending)
        computing += rates.product_s(self.elements, self.size, tokens)
        if self.head:
            computing += rates.product_s(self.head, self.head_size, load.rows)
            computing += SAMPLED * load.rows * self.logits / rates.bandwidth
        if rates.costs is not None:
            computing *= WHOLE_OVER_PARTS
        if self.exchange is None:
            return computing, 0.0
        computing += self.layers * len(self.exchange.gathered) * rates.gathered_s
        return computing, self.exchange.seconds(self, load)

    def link_s(self, load: Load, line: Line, last: bool) -> float:
        """Until what a step left is at the next stage: hidden states, or of the last one tokens."""
        size = load.rows * TOKEN_BYTES if last else (load.decoding + load.fed) * self.message
        return line.seconds(size)


def usual_load(work: Workload, batch: Batch) -> Load:
    """That of a step in the middle of a run: all slots taken, and as many tokens of prompts as new rows bring."""
    ended = batch.slots / (work.mean_new + work.mean_prompt / batch.prefill_chunk)  # rows per step
    fed = min(ended * work.mean_prompt, max(1.0, batch.prefill_chunk - batch.slots))
    decoding = batch.slots
    return Load(
        rows=max(batch.slots, fed * work.asked),
        decoding=decoding,
        positions=decoding * (work.mean_prompt + work.mean_new / 2),
        fed=fed,
        seen=fed * work.mean_prompt / 2,
    )


def layer_costs(model: Model, load: Load, rates: Rates) -> list[float]:
    """Seconds of each layer in a step, the head's with the last one's, as they stay together."""

    def seconds(layers: Sequence[Module], has_head: bool = False) -> float:
        cost = StageCost.of(model, layers, rates, has_head)
        return replace(cost, passes=0)(load)[0]  # a stage has one, whatever its layers

    layers = model.outline.layers
    by_size = {layer.weights: layer for layer in layers}
    found = {size: seconds([layer]) for size, layer in by_size.items()}
    costs = [found[layer.weights] for layer in layers]
    costs[-1] += seconds([], has_head=True)
    return costs


def whole_model(subject: Subject, rates: Rates | None = None) -> StageCost:
    """What a step costs where one rank has all layers; ``rates`` in place of the subject's."""
    model = subject.model
    return StageCost.of(model, model.outline.layers, rates or subject.rates, has_head=True)


def _visited(model: Model, layer: Module) -> float:
    """Elements of a layer that one token is multiplied with: of its experts only those that it visits."""
    dims = model.dims
    attention = 2 * dims.hidden * (dims.heads + dims.kv_heads) * dims.head_dim
    return min(layer.weights / model.width, attention + 3 * dims.hidden * dims.mlp_width)
