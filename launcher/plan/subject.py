"""Subject: what a strategy is asked to plan, and what is the same in the plans of all of them. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from launcher.job.spec import JobSpec
from launcher.plan.batching import batch_notes, largest_batch
from launcher.plan.checkpoint import WIDTHS, Checkpoint
from launcher.plan.course import Replayed
from launcher.plan.dims import text_config
from launcher.plan.machines import Machines
from launcher.plan.memory import Model
from launcher.plan.plan import Batch, Predicted
from launcher.plan.rates import Rates
from launcher.plan.shards import Shards, read_again
from launcher.plan.workload import Workload
from launcher.records import Demand

FEW_SLOTS = 4  # with fewer sequences at a time most of a device's arithmetic is idle


@dataclass(frozen=True)
class Subject:
    """The arguments of a strategy's ``place``, and what follows from them however the model is split."""

    checkpoint: Checkpoint
    machines: Machines
    spec: JobSpec
    demand: Demand

    @cached_property
    def dtype(self) -> str:
        """What the weights are loaded as."""
        return self.checkpoint.dtype(self.spec.model.dtype)

    @cached_property
    def model(self) -> Model:
        """What memory follows from."""
        width = WIDTHS[self.dtype]
        soft_caps = text_config(self.checkpoint.config).get("attn_logit_softcapping")
        attention = self.spec.model.attention
        if soft_caps and attention == "sdpa":
            attention = "eager"  # sdpa has no soft caps
        if self.spec.task == "score" and attention == "flash_attention_2":
            attention = "sdpa"  # whose masks know branches
        return Model(self.checkpoint.dims, self.checkpoint.outline(width), width, attention)

    @cached_property
    def shards(self) -> Shards:
        """How the ranks of a tensor group share the model."""
        dims, config = self.checkpoint.dims, self.checkpoint.config
        return Shards.of(config, dims, self.spec.parallel.tensor)

    @cached_property
    def part(self) -> Model:
        """``model``, of every tensor what one rank of a tensor group has."""
        whole, shards = self.model, self.shards
        if shards.count == 1:
            return whole
        outline = self.checkpoint.outline(whole.width, shards.part)
        return replace(whole, dims=shards.dims(whole.dims), outline=outline)

    @cached_property
    def rates(self) -> Rates:
        """Of one rank's device, while all ranks of its node work."""
        parallel = self.spec.parallel
        ranks = parallel.replicas * parallel.stages * parallel.tensor
        return Rates.of(self.machines, self.dtype, max(1, ranks // self.machines.nodes))

    @cached_property
    def read_bytes(self) -> int:
        """Of the checkpoint, that a replica reads: what is read once, and what several nodes read."""
        return self.checkpoint.file_bytes + read_again(self.checkpoint, self._group_nodes)

    @property
    def _group_nodes(self) -> int:
        """That the ranks of a tensor group are on: it is within a node, or on whole ones."""
        groups = self.spec.parallel.replicas * self.spec.parallel.stages
        return max(1, self.machines.nodes // groups)

    def work(self, batch: Batch) -> Workload:
        """One replica's share of the rows."""
        length = batch.max_length
        if length not in self._works:
            whole = Workload.of(self.demand, self.checkpoint.dims.vocab, length)
            rows = max(1, self.demand.share(self.writers))
            self._works[length] = replace(whole, rows=rows)
        return self._works[length]

    @property
    def writers(self) -> int:
        """Replicas of all worlds, which share the rows."""
        return self.spec.parallel.replicas * self.machines.worlds

    @cached_property
    def _works(self) -> dict[int, Workload]:
        return {}

    def predicted(
        self, replayed: Replayed, bubble: float | None = None, loaded: int | None = None
    ) -> Predicted:
        """Of one world on average, from what one of its replicas does that has as many rows as any. ``loaded``: bytes
        that a replica reads before its first step, where those are not all."""
        machines, rates = self.machines, self.rates
        part = full_part(self.demand.rows, self.writers)
        load_s = self.load_s(self.read_bytes if loaded is None else loaded)
        wall_s = rates.start_s + load_s + replayed.seconds
        gpus = machines.nodes * machines.gpus_per_node
        return Predicted(
            tokens_per_s=part * self.spec.parallel.replicas * replayed.tokens_per_s,
            new_tokens=part * self.writers * replayed.tokens,
            wall_s=wall_s,
            load_s=load_s,
            generate_s=replayed.seconds,
            utilization=part * replayed.utilization,
            bubble=bubble,
            gpu_hours=wall_s * gpus * machines.worlds / 3600 if gpus else None,
        )

    def load_s(self, size: int) -> float:
        """Until every rank has its part of the ``size`` bytes that a replica reads. Replicas of a node read them
        once between them: the others find them in memory."""
        parts, rates = min(1.0, self.spec.parallel.replicas / self.machines.nodes), self.rates
        return rates.loading_s + size * parts / rates.disk

    def loading(self, weights: int) -> dict[str, float]:
        """Fields of a DevicePlan that gets ``weights`` bytes when its rank loads."""
        size = weights * self.read_bytes / self.model.outline.root.weights
        each = max(1.0, self.spec.parallel.replicas / self.machines.nodes)
        whole = self.read_bytes if weights else 0
        return {"load_s": self.load_s(whole), "bytes_read": size / each}

    def largest_batch(self, groups: int | None = None) -> Batch:
        """The most that makes sense to have in flight, before it is asked what fits."""
        return largest_batch(
            self.spec, self.checkpoint.dims, self.demand, self.machines.device, groups
        )

    def notes(self, batch: Batch) -> list[str | None]:
        """What was assumed, and what the batch that was found means for the rows."""
        return [
            self._length_note(batch),
            self.checkpoint.note,
            *self.machines.notes,
            *batch_notes(self.spec, self.checkpoint.dims),
            *self.shards.notes(self.checkpoint.dims),
            self._reading_note(),
        ]

    def _reading_note(self) -> str | None:
        more = self.read_bytes / self.checkpoint.file_bytes - 1
        if not more:
            return None
        return (
            f"the ranks of a tensor group are on {self._group_nodes} nodes, and each of these reads all of what is cut by "
            f"columns (o_proj, down_proj): {more:.0%} more than the checkpoint has"
        )

    def _length_note(self, batch: Batch) -> str | None:
        longest, open_ = self.largest_batch().max_length, self.spec.batch
        if batch.max_length < longest:
            return (
                f"the longest rows ({longest} tokens at most) fit in no slot: rows over {batch.max_length} "
                "tokens will fail as too_long"
            )
        if (
            batch.slots < FEW_SLOTS <= self.demand.sequences
            and open_.slots == open_.max_length == "auto"
        ):
            few, each = ("1 slot", "it") if batch.slots == 1 else (f"{batch.slots} slots", "each")
            return (
                f"only {few}, since {each} must hold the longest row ({longest} tokens at most): "
                "batch.max_length lets longer rows fail instead"
            )
        return None

    def facts(self) -> dict[str, Any]:
        """The fields of a Plan that no strategy decides."""
        gpu = self.machines.gpu
        return {
            "task": self.spec.task,
            "device": self.machines.device,
            "dtype": self.dtype,
            "rows": self.demand.rows,
            "parameters": self.checkpoint.parameters,
            "weights_bytes": self.model.outline.root.weights,
            "kv_bytes_per_token": self.model.kv_bytes_per_token,
            "nodes": self.machines.nodes,
            "worlds": self.machines.worlds,
            "gpus_per_node": self.machines.gpus_per_node,
            "peak_flops": gpu.flops.get(self.dtype) if gpu else None,
            "peak_bandwidth": gpu.bandwidth if gpu else None,
            "rates": self.rates.source,
        }


def full_part(rows: int, writers: int) -> float:
    """Of the rows that there were if every writer had as many as the one with most of them."""
    most = -(-max(1, rows) // writers)
    return max(1, rows) / (writers * most)
