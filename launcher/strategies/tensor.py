"""Strategy `tensor`: every layer is shared by the ranks of a replica, which add their results up twice per layer.

All of them run every step at the same time, so there is nothing to wait for but the exchange, which a
fast link between them keeps short: within a node where that can be. `pipeline` with ``tensor`` has several
such groups in a row. With ``backend: tensor_parallel`` a replica is one rank with a thread for each device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from launcher.errors import UsageError
from launcher.job.spec import JobSpec, Section
from launcher.measure.spans import Recorder
from launcher.plan.checkpoint import Checkpoint
from launcher.plan.machines import Machines
from launcher.plan.plan import DevicePlan, Placement, Plan, Predicted
from launcher.plan.subject import Subject
from launcher.records import Demand
from launcher.strategies._parts import load_part, place_parts

if TYPE_CHECKING:
    from launcher.model.gang import Gang
    from launcher.model.step import Server, StepModel

UNPREDICTED = (
    "backend tensor_parallel reads the whole checkpoint into host memory first, and its speed is not predicted; "
    "backend transformers was the faster one on CPUs (python -m benchmarks.tensor)"
)
# Of a DevicePlan, what is predicted of shards that are ranks of their own, and does not hold for threads of one.
OF_RANKS = (
    *("utilization", "bubble", "transfer", "weights"),
    *("prefill_s", "decode_s", "load_s", "bytes_read"),
)


class Options(Section):
    """What `parallel.options` may hold under `tensor`."""

    backend: Literal["transformers", "tensor_parallel"] = Field(
        "transformers",
        description="transformers: a rank per device; tensor_parallel: that package, a thread per device",
    )


def place(checkpoint: Checkpoint, machines: Machines, spec: JobSpec, demand: Demand) -> Plan:
    """What each rank holds of every layer, and how much of the time it exchanges results.

    Raises UsageError for stages, and for degrees that the model or the machines don't allow.
    """
    options = Options.model_validate(spec.parallel.options)
    if spec.parallel.stages != 1:
        raise UsageError(
            f"strategy tensor has no stages: parallel.stages is {spec.parallel.stages}",
            where="parallel.stages",
            fix="take it out, or set parallel.strategy to pipeline, which has both",
        )
    if spec.parallel.schedule == "gpipe":
        raise UsageError(
            "strategy tensor has no schedule: all ranks of a replica compute the same step",
            where="parallel.schedule",
            fix="take it out, or set parallel.strategy to pipeline",
        )
    plan = place_parts(Subject(checkpoint, machines, spec, demand))
    return _threaded(plan) if options.backend == "tensor_parallel" else plan


def load(
    placement: Placement, plan: Plan, spec: JobSpec, recorder: Recorder, gang: Gang
) -> StepModel | Server:
    """This rank's shard, or with backend tensor_parallel all of its replica's."""
    if Options.model_validate(spec.parallel.options).backend == "transformers":
        return load_part(placement, plan, spec, recorder, gang)
    from launcher.model.tensor_parallel_backend import load_shards

    own = [device for device in plan.devices if device.rank == placement.rank]
    devices = [f"cuda:{n}" for n in range(len(own))] if placement.gpus else ["cpu"] * len(own)
    return load_shards(spec.model, plan, devices, recorder)


def _threaded(plan: Plan) -> Plan:
    """``plan`` with one rank for each replica, which has the devices of all its shards."""
    replicas: dict[int, list[Placement]] = {}
    for placement in plan.placements:
        replicas.setdefault(placement.replica, []).append(placement)
    if any(len({placement.node for placement in shards}) > 1 for shards in replicas.values()):
        raise UsageError(
            f"the {len(replicas[0])} devices of a replica are on several nodes, which one process can't drive",
            where="parallel.tensor",
            fix="take fewer, or set parallel.options.backend to transformers",
        )
    return plan.model_copy(
        update={
            "reasons": [*plan.reasons, UNPREDICTED],
            "world_size": len(replicas),
            "ranks_per_node": len(replicas) // plan.nodes,
            "devices": [_of_replica(device) for device in plan.devices],
            "placements": [_together(shards) for shards in replicas.values()],
            "predicted": Predicted(new_tokens=plan.predicted.new_tokens),
        }
    )


def _of_replica(device: DevicePlan) -> DevicePlan:
    return device.model_copy(update={"rank": device.replica, **dict.fromkeys(OF_RANKS)})


def _together(shards: list[Placement]) -> Placement:
    gpus = tuple(gpu for shard in shards for gpu in shard.gpus)
    return shards[0].model_copy(update={"rank": shards[0].replica, "gpus": gpus})
