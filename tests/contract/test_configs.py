"""Every spec in configs/ plans, and what its comments promise is so."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher import strategies
from launcher.input import prompts
from launcher.job.load import load_spec
from launcher.plan.checkpoint import Checkpoint
from launcher.plan.machines import resolve_machines
from launcher.plan.plan import Plan
from launcher.prepare import plan_job

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))

SCRIPTS = [
    name
    for name in CONFIGS
    if "\ntask: script\n" in (ROOT / "configs" / name).read_text(encoding="utf-8")
]


def plan_of(name: str, *overrides: str) -> Plan:
    loaded = load_spec(ROOT / "configs" / name, overrides)
    spec = loaded.spec
    folder = Path(spec.model.path)
    checkpoint = Checkpoint.read(folder) if folder.is_dir() else Checkpoint.known(spec.model.path)
    assert checkpoint is not None, f"{spec.model.path} is neither here nor in the built-in table"
    strategy = strategies.get(spec.parallel.strategy)
    loaded.check_section("parallel.options", strategy.Options, spec.parallel.options)
    machines = resolve_machines(spec, here=False)
    plan: Plan = strategy.place(checkpoint, machines, spec, prompts.scan(spec, 1 << 20))
    return plan


def test_configs_are_found() -> None:
    assert "llama2-70b-sequential.yaml" in CONFIGS


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_plans(name: str) -> None:
    plan = plan_job(ROOT / "configs" / name, [], here=False, say=lambda _: None).plan
    assert plan.world_size > 1
    assert not plan.reasons


@pytest.mark.parametrize("name", sorted({*CONFIGS} - {*SCRIPTS}))
def test_config_plans(name: str) -> None:
    plan = plan_of(name)
    assert plan.fits, plan.reasons
    assert plan.batch.slots > 1
    assert not [reason for reason in plan.reasons if "empty" in reason]


@pytest.mark.parametrize("name", CONFIGS)
def test_config_says_how_to_run_it(name: str) -> None:
    text = (ROOT / "configs" / name).read_text()
    assert text.startswith("# ")
    assert f"configs/{name}" in text


def test_two_copies_per_node() -> None:
    plan = plan_of("llama2-70b-sequential.yaml")
    assert [placement.gpus for placement in plan.placements[:2]] == [(0, 1), (2, 3)]
    assert [device.layers for device in plan.devices[:2]] == [(0, 39), (40, 79)]


def test_small_model_on_a_small_gpu() -> None:
    plan = plan_of("llama3.1-8b-small.yaml", "resources.gpu=RTX-4090")
    assert plan.fits
    assert plan.predicted.bubble == 0
