"""Which of several plans to take, which there are to choose from, and why the others lost. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

from launcher.job.spec import JobSpec, ParallelSpec
from launcher.plan.checkpoint import Checkpoint
from launcher.plan.machines import Machines
from launcher.plan.plan import Plan
from launcher.plan.shards import degrees
from launcher.plan.subject import full_part

ALIKE = 0.05  # predictions that differ by less say nothing: the plan whose ranks depend less on each other is simpler
TOLD = 0.01  # what a plan loses less by says nothing of why
MOST_RANKS = 64  # of one replica
MOST_SHARDS = 8
SHOWN = 12  # and the chosen one


def variants(spec: JobSpec, checkpoint: Checkpoint, machines: Machines) -> list[JobSpec]:
    """What ``strategy: auto`` has to choose from: the spec under each strategy, with every number of stages, shards
    and replicas that fills the machines, as far as it does not say them. Options belong to one strategy, whose own
    check tells which. Where a spec names its strategy, what others would do with all of the machines."""
    asked = spec.parallel
    if asked.strategy != "auto":
        asked = ParallelSpec(schedule=asked.schedule)
    return [
        spec.model_copy(update={"parallel": asked.model_copy(update=each)})
        for each in _shapes(asked, checkpoint, machines)
    ]


def _shapes(
    asked: ParallelSpec, checkpoint: Checkpoint, machines: Machines
) -> Iterator[dict[str, Any]]:
    """Fields of ParallelSpec."""
    said = asked.model_fields_set
    total = machines.nodes * (machines.gpus_per_node or _cpu_ranks(machines))
    alone = asked.stages == asked.tensor == 1
    depths = [asked.stages] if "stages" in said else range(1, checkpoint.dims.layers + 1)
    for name in ("sequential", "streamed"):
        # Where replicas are left open, those that fill the machines, down to one per node.
        each = machines.nodes
        while alone and each <= total:
            replicas = asked.replicas if "replicas" in said else each
            yield {"strategy": name, "replicas": replicas}
            if "replicas" in said:
                break
            each *= 2
    shards = [1, *(d for d in degrees(checkpoint) if d <= MOST_SHARDS)]
    for tensor in [asked.tensor] if "tensor" in said else shards:
        for stages in depths:
            size = stages * tensor
            least = asked.replicas if "replicas" in said else 1
            if not 1 < size <= min(MOST_RANKS, max(total // least, asked.stages * asked.tensor)):
                continue
            if "replicas" not in said and total % size:
                continue
            replicas = asked.replicas if "replicas" in said else max(1, total // size)
            shape = {"stages": stages, "tensor": tensor, "replicas": replicas}
            yield {**shape, "strategy": "tensor" if stages == 1 else "pipeline"}


def _cpu_ranks(machines: Machines) -> int:
    """Ranks of a node without GPUs that were measured together; what more of them would share is not known."""
    profile = machines.profile
    return max((s.ranks for s in profile.speeds if s.device == "cpu"), default=1) if profile else 1


def stands_alone(plan: Plan) -> bool:
    """False for what another strategy does as well: streaming a model of which everything stays in memory."""
    return plan.strategy != "streamed" or any(p.streaming for p in plan.placements)


def best(plans: Sequence[Plan]) -> Plan:
    """Of the plans that fit, the one with most tokens per second; of those that are about as fast the one with
    fewest ranks in a replica, then in all. Where none fits, the one that is least short."""
    return ranked(plans)[0]


def ranked(plans: Sequence[Plan]) -> list[Plan]:
    """The best first."""
    fastest = max((speed(plan) for plan in plans if plan.fits), default=0.0)

    def rank(plan: Plan) -> tuple[float, ...]:
        if not plan.fits:
            return (2, shortage(plan), plan.world_size)
        if speed(plan) >= (1 - ALIKE) * fastest:
            return (0, prod(shape(plan)), plan.world_size, -speed(plan))
        return (1, -speed(plan), plan.world_size)

    return sorted(plans, key=rank)


def speed(plan: Plan) -> float:
    """Predicted tokens per second, 0 where nothing is predicted."""
    return plan.predicted.tokens_per_s or 0.0


def shortage(plan: Plan) -> float:
    """The largest share by which a device is overfull."""
    return max(
        (d.peak_bytes / d.capacity_bytes for d in plan.devices if d.capacity_bytes), default=0.0
    )


def used(plan: Plan) -> float:
    """The predicted busy share of all devices that the plan asks for; those that stay empty are idle, and so
    are those of which nothing is predicted."""
    own = [device for device in plan.devices if device.device.startswith(plan.device)]
    asked_for = plan.nodes * plan.gpus_per_node or len(own)
    return sum(device.utilization or 0.0 for device in own) / asked_for


def candidates(plans: Sequence[Plan], chosen: Plan) -> list[dict[str, Any]]:
    """What else there is, best first, for plan.json; ``chosen`` is among them and says so."""
    others = [plan for plan in plans if _split(plan) != _split(chosen)]
    listed = ranked([*others, chosen])
    shown = [plan for place, plan in enumerate(listed) if place < SHOWN or plan is chosen]
    return [_told(plan, chosen, listed[0]) for plan in shown]


def _told(plan: Plan, chosen: Plan, first: Plan) -> dict[str, Any]:
    stages, shards = shape(plan)
    return {
        "strategy": plan.strategy,
        "schedule": plan.schedule,
        "stages": stages,
        "tensor": shards,
        "replicas": plan.replicas,
        "ranks": plan.world_size,
        "groups": plan.batch.groups,
        "slots": plan.batch.slots,
        "fits": plan.fits,
        "tokens_per_s": plan.predicted.tokens_per_s,
        "utilization": plan.predicted.utilization,
        "wall_s": plan.predicted.wall_s,
        "gpu_hours": plan.predicted.gpu_hours,
        "empty_gpus": empty_gpus(plan),
        "chosen": plan is chosen,
        "reason": "" if plan is first else why(plan, first),
    }


def shape(plan: Plan) -> tuple[int, int]:
    """Stages that are ranks of their own, and shards of each."""
    stages = 1 + max(placement.stage for placement in plan.placements)
    return stages, max(placement.shards for placement in plan.placements)


def _split(plan: Plan) -> tuple[object, ...]:
    """Plans are told apart by this."""
    return plan.strategy, *shape(plan), plan.world_size


def empty_gpus(plan: Plan) -> int:
    """GPUs that are asked for and hold nothing."""
    held = sum(1 for d in plan.devices if d.weights_bytes and d.device.startswith("cuda"))
    return max(0, plan.nodes * plan.gpus_per_node - held)


def why(plan: Plan, first: Plan) -> str:
    """What ``plan`` loses most by, compared with ``first``."""
    if not plan.fits:
        return f"does not fit: {_short(plan)}"
    if not speed(plan):
        return "its speed is not predicted"
    if speed(plan) >= (1 - ALIKE) * speed(first):
        return _nearly(plan, first)
    theirs = _losses(first)
    more = [(share - theirs[kind][0], said) for kind, (share, said) in _losses(plan).items()]
    share, said = max([*more, _fewer_ranks(plan, first), _longer(plan, first)])
    return said if share > TOLD else _fewer(plan, first)


def _losses(plan: Plan) -> dict[str, tuple[float, str]]:
    """Shares of the time of all devices in which they do not compute, each with what to say of it."""
    gpus, empty, part = plan.nodes * plan.gpus_per_node, empty_gpus(plan), _part(plan)
    bubble, idle = plan.predicted.bubble or 0.0, 1 - (plan.predicted.utilization or 0.0) / part
    weights, transfer = (_mean(plan, name) for name in ("weights", "transfer"))
    rest = idle - bubble - weights - transfer
    moved = "caches move" if plan.strategy == "streamed" else "link-bound: ranks exchange results"
    return {
        "bubble": (bubble, f"bubbles: stages wait {bubble:.0%} of the time"),
        "empty": (empty / max(1, gpus), f"{empty} of {gpus} GPUs stay empty"),
        "weights": (weights, f"reads weights: computing waits {weights:.0%} of the time"),
        "transfer": (transfer, f"{moved} {transfer:.0%} of the time"),
        "rest": (rest, f"waits for messages and for the engine {rest:.0%} of the time"),
        "rows": (1 - part, f"replicas without rows: there are {plan.rows:,}"),
    }


def _fewer_ranks(plan: Plan, first: Plan) -> tuple[float, str]:
    """On CPUs, where no number of them is asked for."""
    ranks, others = plan.world_size, first.world_size
    share = 0.0 if plan.gpus_per_node else 1 - ranks / others
    return share, f"{_many(ranks, 'rank')} at work instead of {others}"


def _longer(plan: Plan, first: Plan) -> tuple[float, str]:
    """Devices that are busy for longer with as many tokens."""
    times = _computing(plan) / _computing(first)
    rows, others = plan.batch.slots, first.batch.slots
    if rows < 0.9 * others:
        said = f"{_many(rows, 'row')} per step, {others} make more of each reading of the weights"
    else:
        said = f"its devices compute {times:.2f} times as long for as many tokens"
    return 1 - 1 / times, said


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _part(plan: Plan) -> float:
    return full_part(plan.rows, plan.worlds * plan.replicas)


def _mean(plan: Plan, share: str) -> float:
    """Of the devices that compute."""
    own = [device for device in plan.devices if device.utilization is not None]
    return sum(getattr(device, share) or 0.0 for device in own) / max(1, len(own))


def _computing(plan: Plan) -> float:
    """Seconds that all devices together are busy with a new token."""
    return _part(plan) * sum(each.utilization or 0.0 for each in plan.devices) / speed(plan)


def _nearly(plan: Plan, first: Plan) -> str:
    said = _fewer(plan, first)
    size, least = prod(shape(plan)), prod(shape(first))
    if size > least:
        return f"{said}, with {size} ranks in a replica instead of {least}"
    if size == least and plan.world_size > first.world_size:
        return f"{said}, with {plan.world_size} ranks instead of {first.world_size}"
    return said


def _fewer(plan: Plan, first: Plan) -> str:
    less = 1 - speed(plan) / speed(first)
    return f"{less:.1%} fewer tokens/s" if less > 0 else "about as fast"


def _short(plan: Plan) -> str:
    """What is missing, and what would do."""
    told = [reason for reason in plan.reasons if " short" in reason or " would do" in reason]
    return "; ".join(told) or f"{shortage(plan):.1f} times what a device has"
