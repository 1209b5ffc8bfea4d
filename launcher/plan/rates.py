"""What devices and links do per second: measured on a machine like it, from a data sheet, or assumed. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from launcher.plan.hardware import Gpu
from launcher.plan.machines import GpuProfile, Machines, profile_of
from launcher.plan.measured import Costs, Line, MachineProfile, Speed

# What kernels reach of a data sheet's figures in steps of generation; "Efficiently Scaling Transformer Inference"
# (Pope et al., 2022) reports 0.76 of the FLOPs in prefill and less while decoding.
REACHED_FLOPS, REACHED_BANDWIDTH = 0.6, 0.75
MOVED_PER_WIDTH = (
    12  # bytes per element of hidden state and MLP: norms, rotary embedding, activation, sums
)
# Seconds of a run's steps over what their parts took, measured one by one: 1.08 to 1.24 in benchmarks/predictions.py.
WHOLE_OVER_PARTS = 1.15
STEP_S = 2e-4  # of Python per step: choosing rows, launching, taking tokens in
# What was seen on measured CPUs in runs of benchmarks/predictions.py, beside what `launcher bench machine` knows: of a
# stage of several, per step, for messages; and per tensor that the ranks of a stage gather, beside exchanging it.
MESSAGE_S, GATHERED_S = 5e-4, 6e-5
START_S = 15.0  # from the agent's start until its ranks can load
LOADING_S = 5.0  # of loading, beside reading
# Bytes per second of files in memory that a thread maps, and lets go again: small pages are assumed, with huge ones it
# is a hundred times that (docs/decisions/0011-weights-in-place.md).
MAPPED = 10e9


@dataclass(frozen=True)
class Rates:
    """One rank's device while all ranks of its node work; ``far`` lines lie between nodes. ``flops`` and
    ``bandwidth`` per second; ``disk`` bytes per second of a node, ``cached`` those of one thread that reads files
    which are in memory, ``mapped`` of a rank that maps them; ``threads`` of a rank that computes on CPUs. ``source`` says
    where they are from."""

    source: str
    flops: float
    bandwidth: float
    layer_s: float
    link: Line
    far_link: Line
    all_reduce: Line
    far_all_reduce: Line
    gather: Line
    far_gather: Line
    disk: float = 2e9
    cached: float = 5e9
    mapped: float | None = MAPPED  # None: they can't be
    host_link: float = 20e9  # bytes per second between a GPU and its host
    threads: int = 1
    pass_s: float = 0.0  # of a pass through some layers
    row_s: float = 0.0  # of a layer, per row that decodes
    step_s: float = STEP_S
    message_s: float = 0.0
    gathered_s: float = 0.0
    start_s: float = START_S
    loading_s: float = LOADING_S
    overlaps: bool = True  # a GPU reads while it computes; a CPU's core does one after the other
    costs: Costs | None = None

    @classmethod
    def of(cls, machines: Machines, dtype: str, ranks_per_node: int = 1) -> Rates:
        """The measured ones where a profile has them, else the data sheet's, else assumed ones."""
        base = _on_paper(machines.gpu, dtype)
        profile = machines.profile
        speed = _speed(profile, machines.gpu, ranks_per_node) if profile else None
        if profile is None or speed is None or dtype not in speed.costs:
            return base
        return base.measured(profile, speed, dtype)

    def measured(self, profile: MachineProfile, speed: Speed, dtype: str) -> Rates:
        """These with what was measured in their place; the network between nodes was not."""
        costs = speed.costs[dtype]
        near = (speed.device == "cpu") == (profile.backend == "gloo")
        return replace(
            self,
            source=f"measured on {profile.host}",
            flops=max(costs.matmul.values()),
            bandwidth=speed.memory,
            layer_s=costs.layer_s,
            pass_s=costs.pass_s,
            row_s=costs.row_s,
            costs=costs,
            link=profile.link if near else self.link,
            all_reduce=profile.all_reduce if near else self.all_reduce,
            gather=profile.gather if near else self.gather,
            disk=profile.disk,
            cached=profile.cached,
            mapped=speed.mapped,
            threads=speed.threads,
            step_s=profile.step_s,
            message_s=MESSAGE_S if speed.device == "cpu" else 0.0,
            gathered_s=GATHERED_S if speed.device == "cpu" else 0.0,
            start_s=profile.start_s,
            loading_s=profile.loading_s,
        )

    @cached_property
    def unpacked(self) -> Rates:
        """These where matrices lie as in their files."""
        if self.costs is None or not self.costs.unpacked:
            return self
        return replace(self, costs=self.costs.model_copy(update={"matmul": self.costs.unpacked}))

    def product_s(self, elements: float, size: float, rows: float) -> float:
        """Seconds to multiply ``rows`` rows with weights of ``size`` bytes, of which each row meets ``elements``."""
        if not size or not rows:
            return 0.0
        if self.costs is None:
            reading, computing = size / self.bandwidth, 2 * elements * rows / self.flops
            return max(reading, computing) if self.overlaps else reading + computing
        return max(size / self.bandwidth, elements * self.costs.element_s(rows))

    def attend_s(self, queries: float, cache: float, positions: float, prompts: float) -> float:
        """Seconds of one layer's attention: tokens that decode see ``positions`` together, tokens of prompts
        ``prompts``. ``queries``: elements of one token's query; ``cache``: bytes of one position."""
        if self.costs is not None:
            costs = self.costs
            return costs.decode_s * positions * cache + costs.prefill_s * prompts * queries
        # The keys of a prompt are read once per block of queries, so its attention is arithmetic.
        return positions * cache / self.bandwidth + 4 * prompts * queries / self.flops

    def width_s(self, elements: float) -> float:
        """Seconds for what is done element by element: of hidden states and MLPs of all tokens."""
        if self.costs is not None:
            return elements * self.costs.width_s
        return elements * MOVED_PER_WIDTH / self.bandwidth


def _on_paper(gpu: GpuProfile | None, dtype: str) -> Rates:
    if gpu is None:
        near, far = Line(latency_s=2e-4, bytes_per_s=2e9), Line(latency_s=3e-4, bytes_per_s=1e9)
        lines = (near, far) * 3
        return Rates("assumed", 60e9, 20e9, 5e-4, *lines, overlaps=False)
    known = bool(gpu.flops.get(dtype) and gpu.bandwidth)
    link = Line(latency_s=3e-5, bytes_per_s=REACHED_BANDWIDTH * (gpu.link or 20e9))
    far = Line(latency_s=5e-5, bytes_per_s=10e9)
    return Rates(
        source=f"the data sheet of {gpu.name}" if known else "assumed",
        flops=REACHED_FLOPS * (gpu.flops.get(dtype) or 100e12),
        bandwidth=REACHED_BANDWIDTH * (gpu.bandwidth or 1e12),
        layer_s=5e-5,
        link=link,
        far_link=far,
        all_reduce=link,
        far_all_reduce=far,
        gather=link,
        far_gather=far,
    )


def _speed(profile: MachineProfile, gpu: GpuProfile | None, ranks: int) -> Speed | None:
    if gpu is None:
        return profile.speed("cpu", ranks)
    for speed in profile.speeds:
        known = profile_of(Gpu(speed.device))
        if known is not None and known.name == gpu.name:
            return speed
    return None
