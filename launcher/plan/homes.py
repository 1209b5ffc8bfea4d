"""Homes: which rank of a world is which part of the model, and where it runs. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.errors import UsageError
from launcher.job.spec import ParallelSpec
from launcher.plan.machines import Machines


@dataclass(frozen=True)
class Home:
    """One rank: part ``shard`` of stage ``stage`` of a replica; ``gpu`` counts the node's, None on a CPU."""

    rank: int
    replica: int
    stage: int
    shard: int
    node: int
    gpu: int | None


def homes(parallel: ParallelSpec, machines: Machines) -> list[Home]:
    """Rank by rank, one node after the other. The ranks that share a stage are neighbours, and so are the stages
    of a replica; either of them is within one node, or on whole nodes.

    Raises UsageError for a world that can't be laid so, or that has more ranks than there are GPUs.
    """
    stages, tensor, replicas = parallel.stages, parallel.tensor, parallel.replicas
    replica = stages * tensor
    each, rest = divmod(replica * replicas, machines.nodes)
    unit = _shape(parallel)
    shape = f"{replicas} x {unit}" if replicas > 1 else unit
    if rest or any(each % size and size % each for size in (tensor, replica)):
        raise UsageError(
            f"{shape} can't be laid evenly over {machines.nodes} nodes",
            where=_where(parallel),
            cause="every node has as many ranks, and a replica is within a node or on whole nodes",
            fix="make parallel.replicas a multiple of resources.nodes, or the ranks of a replica one",
        )
    if machines.device == "cuda" and each > machines.gpus_per_node:
        raise UsageError(
            f"{shape} are {each} ranks per node, which has {machines.gpus_per_node} GPUs",
            where=_where(parallel),
            cause="every stage, and every shard of one, is a process with a GPU of its own",
            fix=f"at most {_at_most(parallel, machines)}, over all replicas",
        )
    return [
        Home(
            rank=rank,
            replica=rank // replica,
            stage=rank % replica // tensor,
            shard=rank % tensor,
            node=rank // each,
            gpu=rank % each if machines.device == "cuda" else None,
        )
        for rank in range(replica * replicas)
    ]


def _shape(parallel: ParallelSpec) -> str:
    names = [
        f"{count} {name}"
        for count, name in ((parallel.stages, "stages"), (parallel.tensor, "shards"))
        if count > 1
    ]
    return " x ".join(names) or "1 stages"


def _where(parallel: ParallelSpec) -> str:
    return "parallel.stages" if parallel.stages > 1 or parallel.tensor == 1 else "parallel.tensor"


def _at_most(parallel: ParallelSpec, machines: Machines) -> str:
    total = machines.gpus_per_node * machines.nodes
    if parallel.tensor == 1:
        return f"{total} stages in all"
    return f"{total} stages x shards in all"
