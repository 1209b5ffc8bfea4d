"""Strategy `tensor`: every layer is shared by the ranks of a replica, which add their results up twice per layer.

All of them run every step at the same time, so there is nothing to wait for but the exchange, which a
fast link between them keeps short: within a node where that can be. `pipeline` with ``tensor`` has several
such groups in a row.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from launcher.errors import UsageError
from launcher.job.spec import JobSpec, Section
from launcher.plan.checkpoint import Checkpoint
from launcher.plan.machines import Machines
from launcher.plan.plan import Plan
from launcher.plan.subject import Subject
from launcher.records import Demand
from launcher.strategies._parts import load_part as load
from launcher.strategies._parts import place_parts

__all__ = ["Options", "load", "place"]


class Options(Section):
    """What `parallel.options` may hold under `tensor`."""

    backend: Literal["transformers"] = Field(
        "transformers", description="whose plan says how tensors are cut: transformers' own"
    )


def place(checkpoint: Checkpoint, machines: Machines, spec: JobSpec, demand: Demand) -> Plan:
    """What each rank holds of every layer, and how much of the time it exchanges results.

    Raises UsageError for stages, and for degrees that the model or the machines don't allow.
    """
    Options.model_validate(spec.parallel.options)
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
    return place_parts(Subject(checkpoint, machines, spec, demand))
