"""What a plan has to say to a person: why it does not fit and what would, and what it wastes."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.job.spec import strategy_names
from launcher.plan.machines import Machines
from launcher.plan.mapped import MappedReplica, Split
from launcher.plan.memory import Share
from launcher.plan.plan import Batch
from launcher.plan.replica import Replica
from launcher.plan.sizes import gib
from launcher.plan.subject import Subject

FEW_SLOTS = 8  # a batch that is worth a copy of the weights


def shortage(replica: Replica, batch: Batch, slots: int) -> list[str]:
    """What is missing for ``batch`` where it is most. ``slots`` is the largest number that fits."""
    short = sorted(replica.overfull(batch), key=lambda item: -item[1])
    found = [_shortage(replica, share, missing) for share, missing in short[:1]]
    return [*found, f"batch.slots: {slots} fits"] if slots else found


def why_not(replica: MappedReplica, batch: Batch, slots: int) -> list[str]:
    """What is missing for ``batch``, and what would do. ``slots`` is the largest number that fits."""
    found = shortage(replica, batch, slots)
    if slots:
        return found
    if not found:
        found.append(f"{replica.split.device_map} finds no room for all layers, another rule may")
    if not replica.gpus:
        return [*found, *_cpu_ways_out(replica)]
    needed = replica.gpus_needed(batch)
    if needed and needed > replica.gpus:
        found.append(f"{needed} GPUs like these per replica would do, here it has {replica.gpus}")
    elif replica.split.max_memory is not None or isinstance(replica.split.device_map, dict):
        found.append("without max_memory and a map of its own, the plan finds room for all of it")
    found += half_as_wide(replica)
    if not replica.split.spills:
        found.append(
            "parallel.options.max_memory with an entry for cpu spills the rest to memory, slowly"
        )
    return found


def half_as_wide(replica: Replica) -> list[str]:
    """For a model in float32."""
    if replica.model.width < 4:
        return []
    return ["model.dtype: bfloat16 needs half of the memory"]


def waste(
    replica: MappedReplica, machines: Machines, busy: Sequence[Share], batch: Batch, replicas: int
) -> list[str]:
    """GPUs that are empty or take turns, layers that are moved again for every step."""
    used = [share.device for share in busy if isinstance(share.device, int)]
    each = replicas // machines.nodes
    empty = [gpu for gpu in range(replica.gpus) if gpu not in used]
    found = []
    if empty and used:
        found.append(_empty(empty, len(used), each))
    if over := machines.gpus_per_node - replica.gpus * each:
        found.append(
            f"{gpus(over)} of each node stay empty: {each} replicas can't share them evenly"
        )
    if len(used) > 1:
        better = "; strategy: pipeline keeps them busy" if "pipeline" in strategy_names() else ""
        found.append(
            f"the {len(used)} GPUs of a replica take turns: each is busy at most "
            f"{100 // len(used)} % of the time{better}"
        )
    found += _copies(replica, machines, batch, replicas)
    return [
        *found,
        *(_spilled(s) for s in busy if s.device == "disk" or (s.device == "cpu" and used)),
    ]


def unused(machines: Machines, ranks_per_node: int, parts: str) -> list[str]:
    """GPUs beyond those that ranks have one each of; ``parts``: what there could be more of."""
    over = machines.gpus_per_node - ranks_per_node if machines.device == "cuda" else 0
    if not over:
        return []
    verb = "stays" if over == 1 else "stay"
    return [f"{gpus(over)} of each node {verb} empty: more {parts} would use them"]


def enough_gpus(subject: Subject) -> list[str]:
    """How many GPUs would hold a replica with its cache, where one does not."""
    machines = subject.machines
    if machines.gpu is None:
        return []
    one = MappedReplica(
        subject.model, Split("sequential"), 1, machines.gpu.memory_bytes, machines.host_bytes
    )
    needed = one.gpus_needed(one.fit(subject.largest_batch(), subject.spec.batch).batch)
    if needed is None or needed == 1:
        return []
    return [f"{needed} GPUs like these per replica would do without streaming"]


def slow_dtype(machines: Machines, dtype: str) -> list[str]:
    """A dtype that the GPU has no units for."""
    gpu = machines.gpu
    if gpu is None or not gpu.flops or dtype in gpu.flops:
        return []
    return [
        f"a {gpu.name} does not compute in {dtype}, it emulates it: model.dtype: float16 is faster"
    ]


def _shortage(replica: Replica, share: Share, missing: int) -> str:
    parts = (
        (share.weights, "weights"),
        (share.kv, "KV cache"),
        (share.activations, "activations"),
        (share.reserve, "for the framework"),
    )
    sizes = ", ".join(f"{gib(size)} {name}" for size, name in parts if size)
    capacity = replica.capacity(share.device) or 0
    return f"{replica.name(share.device)} is {gib(missing)} short: {sizes}; it has {gib(capacity)}"


def _cpu_ways_out(replica: MappedReplica) -> list[str]:
    if replica.split.spills:
        return ["batch.max_length and batch.slots decide what the cache takes"]
    half = gib(replica.cpu_bytes / 2)
    return [
        f"parallel.options.max_memory: {{cpu: {half.replace(' ', '')}}} leaves layers on disk, slowly"
    ]


def _empty(empty: list[int], used: int, each: int) -> str:
    names = ", ".join(map(str, empty))
    subject = f"GPU {names}" if len(empty) == 1 else f"GPUs {names}"
    whose = "" if each == 1 else " of each replica"
    verb = "stays" if len(empty) == 1 else "stay"
    return (
        f"{subject}{whose} {verb} empty: the model is on {gpus(used)}; "
        f"resources.gpus_per_node: {used * each} would not rent more"
    )


def _copies(replica: MappedReplica, machines: Machines, batch: Batch, replicas: int) -> list[str]:
    """Devices that take turns do no more work when there are more of them; copies do."""
    few = batch.model_copy(update={"slots": min(batch.slots, FEW_SLOTS)})
    fewest = replica.gpus_needed(few, at_most=replica.gpus // 2) if replica.gpus > 1 else None
    if fewest is None:
        return []
    most = machines.gpus_per_node // fewest * machines.nodes
    return [f"a copy fits on {gpus(fewest)}: parallel.replicas: {most} keeps more of them busy"]


def _spilled(share: Share) -> str:
    place = "on disk" if share.device == "disk" else "in the CPU's memory"
    return f"{gib(share.weights)} of weights ({len(share.layers)} layers) stay {place} and are moved for every step"


def gpus(count: int) -> str:
    """``1 GPU``, ``2 GPUs``."""
    return f"{count} GPU" if count == 1 else f"{count} GPUs"
