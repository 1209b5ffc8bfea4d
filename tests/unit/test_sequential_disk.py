"""Layers on disk: they compute what layers in memory do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import make_model
from sequential_plans import DEMAND, machines, plan, spec

from launcher.errors import PreflightError, UsageError
from launcher.job.spec import JobSpec
from launcher.measure.spans import Recorder
from launcher.model.gang import Gang
from launcher.model.step import Step, StepModel
from launcher.plan.checkpoint import Checkpoint
from launcher.strategies import sequential

ALONE = Gang(0, 1, ("here",), 0.0)


def test_fused_experts_on_disk_need_a_folder() -> None:
    options: dict[str, Any] = {"max_memory": {"cpu": "40GiB"}}
    with pytest.raises(UsageError, match="fused while loading"):
        plan(machines(0), spec(options), "mistralai/Mixtral-8x7B-v0.1")
    assert plan(machines(0), spec(options)).fits
    options["offload_dir"] = "/scratch/offload"
    assert plan(machines(0), spec(options), "mistralai/Mixtral-8x7B-v0.1").fits


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_folder_that_can_not_be_written_is_named_by_the_plan_and_by_a_rank(
    below: str, tmp_path: Path
) -> None:
    path = make_model(tmp_path / "model", "llama")
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / below
    checkpoint, node = Checkpoint.read(path), machines(0)
    least = checkpoint.outline(4).root.weights * 3 // 4
    options = {"max_memory": {"cpu": least}, "offload_dir": str(folder)}
    job = of_model(path, options)
    with pytest.raises(UsageError, match=r"offload_dir: nothing can be written"):
        sequential.place(checkpoint, replace(node, here=True), job, DEMAND)
    made = sequential.place(checkpoint, node, job, DEMAND)
    with (
        Recorder(tmp_path / "spans.jsonl", {}) as recorder,
        pytest.raises(PreflightError, match=r"parallel\.options\.offload_dir") as caught,
    ):
        sequential.load(made.placements[0], made, job, recorder, ALONE)
    assert str(caught.value).startswith(f"{tmp_path}/file")


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "mixtral", "gemma2"])
def test_layers_on_disk_compute_what_layers_in_memory_do(kind: str, tmp_path: Path) -> None:
    """Loads the plan's own map, with layers on disk, and compares the tokens with those of a plain load."""
    path = make_model(tmp_path / kind, kind)
    checkpoint = Checkpoint.read(path)
    weights = checkpoint.outline(4).root.weights
    asked = {"max_memory": {"cpu": weights * 3 // 4}, "offload_dir": str(tmp_path / "offload")}
    tokens = {}
    for name, options in (("memory", {}), ("disk", asked)):
        job = of_model(path, options)
        made = sequential.place(checkpoint, machines(0), job, DEMAND)
        assert made.fits, made.reasons
        device_map = made.placements[0].device_map
        assert (device_map is not None and "disk" in device_map.values()) == (name == "disk")
        with Recorder(tmp_path / f"{name}.jsonl", {}) as recorder:
            model = sequential.load(made.placements[0], made, job, recorder, ALONE)
            tokens[name] = generate(model)
            model.close()
    assert tokens["disk"] == tokens["memory"]


def of_model(path: Path, options: dict[str, Any]) -> JobSpec:
    job = spec(options, "float32", {"slots": 2, "max_length": 64})
    return job.model_copy(update={"model": job.model.model_copy(update={"path": str(path)})})


def generate(model: StepModel) -> list[list[int]]:
    """Greedy tokens of two prompts of different length."""
    slots, starts = torch.tensor([0, 1]), torch.tensor([0, 0])
    fed, counts = torch.tensor([[5, 6, 7], [9, 0, 0]]), torch.tensor([3, 1])
    found = []
    for step in range(6):
        kind = "decode" if step else "prefill"
        model.launch(Step(0, kind, slots, fed, starts, counts))
        drawn = model.collect()
        found.append(drawn.tolist())
        starts, fed, counts = starts + counts, drawn[:, None], torch.tensor([1, 1])
    return found
