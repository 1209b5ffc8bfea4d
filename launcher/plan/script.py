"""The plan of `task: script`: so many ranks on so many nodes. What they hold, the script alone knows."""

from __future__ import annotations

from typing import Any

from launcher.job.spec import JobSpec
from launcher.plan.machines import Machines
from launcher.plan.plan import Batch, Placement, Plan

NO_BATCH = Batch(groups=1, slots=1, max_length=1, prefill_chunk=1)


def ranks_per_node(spec: JobSpec, machines: Machines) -> int:
    """As many as the spec says, else a rank for each of a node's GPUs."""
    assert spec.script is not None
    asked = spec.script.processes_per_node
    return asked if asked != "auto" else machines.gpus_per_node or 1


def plan_script(spec: JobSpec, machines: Machines, config: dict[str, Any]) -> Plan:
    """All ranks of the world. ``config`` is what `accelerate launch` gets as its config file."""
    each = ranks_per_node(spec, machines)
    gpus = tuple(range(machines.gpus_per_node))
    notes = list(machines.notes)
    if 0 < each < machines.gpus_per_node:
        notes.append(f"{machines.gpus_per_node} GPUs per node for {each} ranks: some may stay idle")
    placements = [
        Placement(rank=rank, replica=0, node=rank // each, gpus=gpus)
        for rank in range(machines.nodes * each)
    ]
    return Plan(
        fits=True,
        reasons=notes,
        task=spec.task,
        strategy="script",
        device=machines.device,
        dtype=str(config.get("mixed_precision", "no")),
        parameters=0,
        weights_bytes=0,
        kv_bytes_per_token=0,
        world_size=len(placements),
        ranks_per_node=each,
        nodes=machines.nodes,
        gpus_per_node=machines.gpus_per_node,
        devices=[],
        placements=placements,
        batch=NO_BATCH,
        rates="none",
        accelerate=config,
    )
