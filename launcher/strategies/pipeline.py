"""Strategy `pipeline`: consecutive layers on ranks of their own, and several groups of sequences on their way through.

A replica is ``stages`` ranks, which may be on several nodes; each reads only its own layers. With ``tensor`` a
stage is that many ranks, each with a shard of its layers. How many groups are in flight, and when each goes
on, is the schedule: naive, gpipe or ring.
"""

from __future__ import annotations

from pydantic import Field

from launcher.job.spec import JobSpec, Section
from launcher.plan.checkpoint import Checkpoint
from launcher.plan.machines import Machines
from launcher.plan.plan import Plan
from launcher.plan.split import check_counts
from launcher.plan.subject import Subject
from launcher.records import Demand
from launcher.strategies._parts import load_part as load
from launcher.strategies._parts import place_parts

__all__ = ["Options", "load", "place"]


class Options(Section):
    """What `parallel.options` may hold under `pipeline`."""

    layers: list[int] | None = Field(
        None, description="layers of each stage; without it, stages are balanced by cost"
    )


def place(checkpoint: Checkpoint, machines: Machines, spec: JobSpec, demand: Demand) -> Plan:
    """Which layers each rank holds, how many groups are in flight, and how busy the stages will be.

    Raises UsageError for a model that can't be cut, or more stages than layers, ranks or GPUs allow.
    """
    layers = Options.model_validate(spec.parallel.options).layers
    if layers is not None:
        where = "parallel.options.layers"
        check_counts(layers, checkpoint.dims.layers, spec.parallel.stages, where)
    return place_parts(Subject(checkpoint, machines, spec, demand), layers)
