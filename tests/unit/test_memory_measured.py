"""Predicted memory against what real runners take: weights, caches, and the most that a step holds beside them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from held_memory import (
    BATCH,
    FILLING,
    KINDS,
    LARGEST,
    cached,
    config_of,
    fill,
    given,
    model_of,
    most_held,
    weights_bytes,
)
from models import random_model
from streamed_cases import plan_of

from launcher.job.spec import JobSpec, ModelSpec
from launcher.measure.spans import NullRecorder
from launcher.model.message import Form, Message
from launcher.model.packed import pack_linears
from launcher.model.pipeline import AHEAD
from launcher.model.runner import StageRunner
from launcher.model.stage import load_stage
from launcher.model.step import Step
from launcher.model.streamed import LayerBlock, StreamedStepModel
from launcher.model.streamed_load import load_streamed
from launcher.plan.checkpoint import Checkpoint
from launcher.plan.machines import Machines
from launcher.plan.memory import RESERVE, shares
from launcher.plan.staged import StagedReplica
from launcher.plan.streaming import Draft, Sizes
from launcher.plan.subject import Subject
from launcher.records import Demand


@pytest.mark.parametrize("kind", KINDS)
def test_peak_is_as_predicted(kind: str) -> None:
    torch.set_num_threads(1)
    model = random_model(config_of(kind))
    pack_linears(model)
    runner = StageRunner(model, BATCH)
    fill(runner)
    held = max(most_held(runner.run, step) for step in LARGEST)
    made = model_of(kind)
    share = shares(made, BATCH, {"": "cpu"}, "cpu")["cpu"]
    assert share.kv == cached(runner)
    assert share.weights == weights_bytes([model]) - made.tied_bytes
    assert runner.held() == {"weights_bytes": share.weights, "kv_bytes": share.kv}
    measured = weights_bytes([model]) + share.kv + held
    assert share.peak - share.reserve == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "mixtral"])
def test_peak_of_stages_is_as_predicted(kind: str, tmp_path: Path) -> None:
    """With the messages that they pass on, one for each group, and those that they have room for."""
    torch.set_num_threads(1)
    random_model(config_of(kind)).save_pretrained(tmp_path)
    spec, form = ModelSpec(path=str(tmp_path), dtype="float32"), Form(256, torch.float32)
    made, batch = model_of(kind), BATCH.model_copy(update={"groups": 2})
    planned = StagedReplica(made, (2, 4), 2**30, "cpu").shares(batch)
    for stage, layers in enumerate([(0, 1), (2, 5)]):
        first, last = stage == 0, stage == 1
        model = load_stage(spec, "float32", layers, 6)
        pack_linears(model)
        runner = StageRunner(model, batch, first, last)
        for group in range(batch.groups):
            fill(runner, group)
        inbox = [] if first else [form.buffer(batch) for _ in range(AHEAD)]
        going: list[torch.Tensor] = []

        def work(
            step: Step, runner: StageRunner = runner, going: list[torch.Tensor] = going
        ) -> None:
            for _ in range(3):
                found = runner.run(step, given(runner, step))
                if not runner._last:
                    going.append(form.pack(Message(step, 0, found)))
                    del going[: -batch.groups]

        held = sum(buffer.nbytes for buffer in inbox)
        held += max(most_held(work, step) for step in LARGEST)
        measured = weights_bytes([model]) + cached(runner) + held
        share = planned[stage]
        assert runner.held() == {"weights_bytes": share.weights, "kv_bytes": share.kv}
        assert share.peak - share.reserve == pytest.approx(measured, rel=0.05), stage


WAYS = {  # buffers, groups whose caches are kept, layers and head that are
    "in place": (2, 3, 0, False),
    "part resident": (1, 3, 3, True),
    "spilled": (2, 1, 1, False),
    "all spilled": (2, 0, 0, False),
}


@pytest.mark.parametrize(
    ("kind", "way"), [*(("llama", way) for way in WAYS), ("mixtral", "spilled")]
)
def test_peak_of_what_is_streamed_is_as_predicted(kind: str, way: str, tmp_path: Path) -> None:
    """Weights that lie in mapped files take no memory of the process's own; they count like the buffers that they save."""
    torch.set_num_threads(1)
    random_model(config_of(kind)).save_pretrained(tmp_path)
    batch = BATCH.model_copy(update={"groups": 3})
    job = {
        "name": "t",
        "model": {"path": str(tmp_path), "dtype": "float32"},
        "input": {"path": "x"},
    }
    machines = Machines("cpu", 1, 0, None, 2**36)
    spec = JobSpec.model_validate(job)
    subject = Subject(Checkpoint.read(tmp_path), machines, spec, Demand(100, 300, 100))
    buffers, kept, layers, head = WAYS[way]
    draft = Draft(subject, Sizes.of(subject), 0.0, batch, buffers, kept, layers, head)
    streaming = draft.streaming()
    assert streaming is not None
    model = load_streamed(spec.model, plan_of(batch), streaming, NullRecorder(), str(tmp_path))

    def sweep(step: Step) -> None:
        for group in range(batch.groups):
            model.launch(replace(step, group=group))
        for _ in range(batch.groups):
            model.collect()

    held = 0
    for step in [*FILLING, *LARGEST]:
        before = kept_bytes(model)
        held = max(held, before + most_held(sweep, step))
    tensors = subject.checkpoint.tensors.items()
    units = [
        sum(tensor.nbytes for name, tensor in tensors if f".layers.{number}." in name)
        for number in range(layers, 6)
    ]
    bodies = [block._runner._body for block in model._parts.blocks if isinstance(block, LayerBlock)]
    resident = weights_bytes([*bodies, model._parts.blocks[-1]._model])  # type: ignore[union-attr]
    told = model.figures()
    moving = max(units) * (buffers if kind == "mixtral" else 1)  # fused experts can't be mapped
    assert told["weights_bytes"] == pytest.approx(resident + moving, rel=0.01)
    assert told["kv_bytes"] == kept_bytes(model)
    model.close()
    measured = resident + buffers * max(units) + held
    assert draft.peak - RESERVE["cpu"] == pytest.approx(measured, rel=0.05)


def kept_bytes(model: StreamedStepModel) -> int:
    """What a sweep finds in memory: caches that are kept, and where spilled ones were read."""
    blocks = [block for block in model._parts.blocks if isinstance(block, LayerBlock)]
    buffers: Any = getattr(model._parts.spill, "_buffers", {})
    read = sum(buffer.nbytes for buffer in buffers.values())
    return read + sum(cached(block._runner) for block in blocks)
