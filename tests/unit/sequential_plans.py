"""Plans of strategy sequential for tests."""

from __future__ import annotations

from typing import Any

from launcher.job.spec import JobSpec
from launcher.plan.checkpoint import Checkpoint
from launcher.plan.machines import Machines, gpu_profiles
from launcher.plan.plan import Plan
from launcher.records import Demand
from launcher.strategies import sequential

GIB = 2**30
DEMAND = Demand(rows=10_000, longest_prompt_bytes=2000, max_new_tokens=256)
SEVENTY = dict.fromkeys(range(4), "70GiB")


def machines(gpus: int, nodes: int = 1, gpu: str = "A100-80GB", host: int = 200) -> Machines:
    if not gpus:
        return Machines("cpu", nodes, 0, None, host * GIB)
    return Machines("cuda", nodes, gpus, gpu_profiles()[gpu], host * GIB)


def spec(
    options: dict[str, Any] | None = None,
    dtype: str = "bfloat16",
    batch: dict[str, Any] | None = None,
    **parallel: Any,
) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "test",
            "model": {"path": "org/model", "dtype": dtype},
            "input": {"path": "prompts.jsonl"},
            "parallel": {"options": options or {}, **parallel},
            "batch": batch or {},
        }
    )


def plan(
    where: Machines,
    job: JobSpec,
    name: str = "meta-llama/Llama-2-70b-hf",
    demand: Demand = DEMAND,
) -> Plan:
    checkpoint = Checkpoint.known(name)
    assert checkpoint is not None
    return sequential.place(checkpoint, where, job, demand)


def layers(made: Plan) -> list[tuple[str, tuple[int, int] | None]]:
    return [(device.device, device.layers) for device in made.devices]


def said(made: Plan) -> str:
    return "\n".join(made.reasons)
