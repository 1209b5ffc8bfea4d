"""What a step costs, module by module: a roofline of reading weights and cache, and of arithmetic. No torch.

The figures serve to compare parts of a model with each other and with the links between them; rates that
are not known are assumed, and how long a run takes is not promised from them.
"""

from __future__ import annotations

from dataclasses import dataclass

from launcher.plan.machines import Machines
from launcher.plan.memory import Model
from launcher.plan.outline import Module
from launcher.plan.plan import Batch
from launcher.records import Demand

# A mean prompt is half as long as the longest, and a token stands for about four bytes of text.
PROMPT_BYTES_PER_TOKEN = 8


@dataclass(frozen=True)
class Rates:
    """Per second: floating point operations and bytes of memory of one rank's device, bytes of a link.

    ``layer_s`` is what a layer takes however little there is to compute: starting its kernels;
    ``latency_s`` is the same of a message.
    """

    flops: float
    bandwidth: float
    layer_s: float
    link: float
    far_link: float  # between nodes
    latency_s: float

    @classmethod
    def of(cls, machines: Machines, dtype: str) -> Rates:
        """The profile's figures where it has them, else those of common hardware."""
        if machines.gpu is None:
            return cls(60e9, 20e9, 5e-4, link=2e9, far_link=1e9, latency_s=2e-4)
        flops = machines.gpu.flops.get(dtype) or 100e12
        bandwidth = machines.gpu.bandwidth or 1e12
        return cls(flops, bandwidth, 5e-5, link=20e9, far_link=10e9, latency_s=3e-5)


@dataclass(frozen=True)
class StepCost:
    """Seconds per decode step of one group, with the prefill that its sequences needed spread over their tokens.

    ``layers`` has one figure per layer; ``embedding`` and ``head`` are all that is before and behind them.
    """

    embedding: float
    layers: tuple[float, ...]
    head: float

    @classmethod
    def of(cls, model: Model, batch: Batch, demand: Demand, rates: Rates) -> StepCost:
        """For ``batch.slots`` sequences that are half as long as a slot on average."""
        prompt = min(demand.longest_prompt_bytes / PROMPT_BYTES_PER_TOKEN, batch.max_length)
        # The first token is drawn at the end of prefill, so a row's n tokens are n passes through the head.
        prefilled = batch.slots * prompt / max(1, demand.max_new_tokens)
        cache = batch.slots * batch.max_length / 2 * model.kv_bytes_per_layer / rates.bandwidth

        def layer(module: Module) -> float:
            elements = _visited(model, module)
            reading = module.weights / rates.bandwidth
            decode = max(reading, 2 * elements * batch.slots / rates.flops)
            return rates.layer_s + decode + 2 * elements * prefilled / rates.flops + cache

        outline, dims = model.outline, model.dims
        head = next((m for m in outline.root.leaves() if m.name == outline.head), None)
        # A head that is the embedding has no weights of its own in the outline, but is computed all the same.
        elements = max(head.weights // model.width if head else 0, dims.vocab * dims.hidden)
        logits = 2 * batch.slots * dims.vocab * model.width / rates.bandwidth
        return cls(
            embedding=(batch.slots + prefilled) * dims.hidden * model.width / rates.bandwidth,
            layers=tuple(layer(module) for module in outline.layers),
            head=logits
            + max(
                elements * model.width / rates.bandwidth, 2 * elements * batch.slots / rates.flops
            ),
        )

    @property
    def by_layer(self) -> list[float]:
        """The layers' costs, the embedding with the first and the head with the last, as they stay together."""
        costs = list(self.layers)
        costs[0] += self.embedding
        costs[-1] += self.head
        return costs


def link_seconds(
    model: Model, batch: Batch, rates: Rates, far: bool, tokens: bool = False
) -> float:
    """Until a decode step's hidden states (or its ``tokens``) are at another rank; ``far``: on another node."""
    size = batch.slots * (8 if tokens else model.dims.hidden * model.width)
    return rates.latency_s + size / (rates.far_link if far else rates.link)


def exchange_seconds(model: Model, batch: Batch, rates: Rates, ranks: int, far: bool) -> float:
    """Until the ``ranks`` of a tensor group have added up what they made of a layer in a decode step, behind its
    attention and behind its MLP; ``far``: they are on several nodes."""
    if ranks == 1:
        return 0.0
    # Every rank sends all parts but its own twice: to be added up, and as sums.
    size = 2 * (ranks - 1) / ranks * batch.slots * model.dims.hidden * model.width
    return 2 * (rates.latency_s + size / (rates.far_link if far else rates.link))


def _visited(model: Model, layer: Module) -> float:
    """Elements of a layer that one token is multiplied with: of its experts only those that it visits."""
    dims = model.dims
    attention = 2 * dims.hidden * (dims.heads + dims.kv_heads) * dims.head_dim
    return min(layer.weights / model.width, attention + 3 * dims.hidden * dims.mlp_width)
