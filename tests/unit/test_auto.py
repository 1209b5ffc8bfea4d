"""`strategy: auto`: what submit makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.errors import SpecError, UsageError
from launcher.plan.plan import Plan
from launcher.submit import plan_job

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


def plan(*overrides: str) -> Plan:
    """Of the demo's model under ``auto``, for four GPUs."""
    base = {
        "parallel.strategy": "auto",
        "parallel.replicas": "1",
        "resources.device": "cuda",
        "resources.gpus_per_node": "4",
        "resources.gpu": "A100-80GB",
    }
    given = base | dict(override.split("=", 1) for override in overrides)
    pairs = [f"{key}={value}" for key, value in given.items()]
    return plan_job(DEMO, pairs, here=False, say=lambda _: None).plan


def test_gpus_that_would_stay_empty_become_stages() -> None:
    made = plan()
    assert made.strategy == "pipeline"
    assert made.world_size == 4
    assert plan("parallel.replicas=2").world_size == 4
    assert plan("parallel.stages=2").world_size == 2


def test_nothing_is_cut_where_every_gpu_has_a_copy() -> None:
    assert plan("parallel.replicas=4").strategy == "sequential"
    assert plan("resources.device=cpu").strategy == "sequential"


def test_options_and_stages_say_which_strategy_is_meant() -> None:
    assert plan("parallel.options={device_map: balanced}").strategy == "sequential"
    assert plan("parallel.options={layers: [2, 2, 2, 2]}").strategy == "pipeline"
    assert plan("parallel.stages=2", "resources.device=cpu").strategy == "pipeline"


def test_what_no_strategy_can_do() -> None:
    with pytest.raises(SpecError):
        plan("parallel.options={layer: [2, 2, 2, 2]}")
    with pytest.raises(UsageError):
        plan("parallel.replicas=8")
