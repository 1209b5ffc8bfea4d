"""What every module of launcher/strategies holds to; a new file there is tested on arrival."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from launcher import strategies
from launcher.errors import UsageError
from launcher.job.section import Section
from launcher.job.spec import JobSpec, strategy_names
from launcher.plan.checkpoint import Checkpoint
from launcher.plan.machines import Machines, gpu_profiles
from launcher.plan.plan import Plan
from launcher.records import Demand

NAMES = strategies.names()


def test_file_names_are_yaml_names() -> None:
    assert "sequential" in NAMES
    assert strategy_names() == ["auto", *NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_surface(name: str) -> None:
    strategy = strategies.get(name)
    assert strategy.__doc__
    assert f"`{name}`" in strategy.__doc__.partition("\n")[0]
    assert issubclass(strategy.Options, Section)
    assert all(field.description for field in strategy.Options.model_fields.values())
    assert list(inspect.signature(strategy.place).parameters) == [
        "checkpoint",
        "machines",
        "spec",
        "demand",
    ]
    assert list(inspect.signature(strategy.load).parameters) == [
        "placement",
        "plan",
        "spec",
        "recorder",
        "gang",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_importing_and_placing_needs_no_torch(name: str) -> None:
    code = f"""
import sys
from launcher import strategies
strategies.get({name!r})
print([m for m in ("torch", "transformers", "accelerate") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_plan_is_whole(name: str, device: str) -> None:
    """Placements, devices and totals agree, and the plan survives being written and read."""
    checkpoint = Checkpoint.known("meta-llama/Llama-3.1-8B")
    assert checkpoint is not None
    gpu = gpu_profiles()["A100-80GB"]
    where = (
        Machines("cuda", 1, 2, gpu, 2**38)
        if device == "cuda"
        else Machines("cpu", 1, 0, None, 2**38)
    )
    spec = JobSpec.model_validate(
        {
            "name": "test",
            "model": {"path": "org/model"},
            "input": {"path": "prompts.jsonl"},
            "parallel": {"strategy": name},
        }
    )
    plan = strategies.get(name).place(checkpoint, where, spec, Demand(100, 500, 64))
    assert plan.fits, plan.reasons
    assert plan.strategy == name
    assert plan.device == device
    assert plan.world_size == len(plan.placements) == plan.ranks_per_node * plan.nodes
    assert [placement.rank for placement in plan.placements] == list(range(plan.world_size))
    assert {d.rank for d in plan.devices} == set(range(plan.world_size))
    for row in plan.devices:
        assert row.peak_bytes >= row.weights_bytes + row.kv_bytes + row.activation_bytes
        assert row.capacity_bytes is None or row.peak_bytes <= row.capacity_bytes
    assert plan.parameters == checkpoint.parameters
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


def test_name_that_is_none() -> None:
    with pytest.raises(UsageError) as caught:
        strategies.get("sequentail")
    assert "did you mean `sequential`" in str(caught.value)
    with pytest.raises(UsageError):
        strategies.get("__init__")
    with pytest.raises(UsageError):
        strategies.get("../cli")
