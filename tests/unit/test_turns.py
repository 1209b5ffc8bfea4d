"""Turns: every device of a spread model has its own spans, and bringing spilled weights is not computing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models import make_model

from launcher.job.spec import ModelSpec
from launcher.measure.bubble import account, shares
from launcher.measure.spans import Recorder, clock
from launcher.measure.timeline import Timeline, read_timelines
from launcher.model.direct import load
from launcher.model.local import RunnerStepModel
from launcher.model.runner import StageRunner
from launcher.model.step import Step
from launcher.model.turns import TurnTimer
from launcher.model.weights import Loading
from launcher.plan.plan import Batch

LAYERS = 4


def device_map(places: list[Any]) -> dict[str, Any]:
    """The embedding where the first layer is, norm and head where the last one is."""
    found = {"model.embed_tokens": places[0]}
    found |= {f"model.layers.{number}": place for number, place in enumerate(places)}
    ends = ("model.norm", "model.rotary_emb", "lm_head")
    return found | dict.fromkeys(ends, places[-1])


def timeline_of(model: Any, stages: dict[Any, int], path: Path) -> Timeline:
    """Of a prefill and two decode steps."""
    batch = Batch(groups=1, slots=2, max_length=60, prefill_chunk=64)
    header = {"rank": 0, "replica": 0, "host": "h", "attempt": "w0000-a0001", "clock": clock()}
    with Recorder(path, header) as recorder:
        steps = RunnerStepModel(StageRunner(model, batch), TurnTimer(model, stages, recorder))
        for start, count in ((0, 20), (20, 1), (21, 1)):
            steps.launch(
                Step(
                    group=0,
                    kind="decode" if start else "prefill",
                    slots=torch.tensor([0, 1]),
                    tokens=torch.randint(5, 400, (2, count)),
                    starts=torch.tensor([start, start]),
                    counts=torch.tensor([count, count]),
                )
            )
            steps.collect()
        steps.close()
    (timeline,) = read_timelines([path])
    return timeline


def test_devices_take_turns_within_a_step(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    model = load(ModelSpec(path=str(make_model(tmp_path / "m", "llama"))), Loading("float32"))
    # The CPU under four names: what a map over GPUs looks like, on a machine without one.
    names = ["a", "a", "b", "c"]
    model.hf_device_map = device_map(names)
    runner_device = model.device
    stages = {"a": 0, "b": 1, "c": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("launcher.model.runner.main_device", lambda _: runner_device)
        timeline = timeline_of(model, stages, tmp_path / "t.jsonl")
    spans = timeline.select("prefill", "decode")
    assert spans["stage"].tolist() == [0, 1, 2] * 3
    assert spans["step"].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert len(timeline.select("prefill")) == 3
    assert (spans["start"][1:] >= spans["end"][:-1]).all()
    found = {stage: shares(seconds) for (_, stage), seconds in account([timeline]).items()}
    for share in found.values():
        assert sum(share.values()) == pytest.approx(1)
        assert min(share["busy"], share["bubble"]) > 0
    assert sum(share["busy"] for share in found.values()) < 1.01


def test_bringing_weights_from_disk_is_not_computing(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    spec = ModelSpec(path=str(make_model(tmp_path / "m", "llama")))
    places = device_map(["cpu", "cpu", "disk", "disk"]) | {"lm_head": "cpu", "model.norm": "cpu"}
    model = load(spec, Loading("float32", places))
    timeline = timeline_of(model, {"cpu": 0, "disk": 0}, tmp_path / "t.jsonl")
    weights = timeline.select("weights")
    assert len(weights) >= 3 * 2  # two layers in each of three steps, part by part
    assert set(weights["step"].tolist()) == {0, 1, 2}
    (seconds,) = account([timeline]).values()
    share = shares(seconds)
    assert share["weights"] > 0.05
    assert share["busy"] > 0.05
