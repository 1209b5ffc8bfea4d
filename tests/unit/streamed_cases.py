"""Models that tests stream, and what they say when they are whole."""

from __future__ import annotations

import random
from pathlib import Path

import torch

from launcher.engine.engine import Engine
from launcher.engine.text import Text
from launcher.job.spec import ModelSpec
from launcher.measure.spans import NullRecorder
from launcher.model.local import LocalStepModel
from launcher.model.step import StepModel
from launcher.model.streamed import StreamedStepModel
from launcher.model.streamed_load import load_streamed
from launcher.model.weights import Loading, load_model
from launcher.plan.plan import Batch, Plan, Streaming
from launcher.records import Failure, Generation, Request, Sampling

LAYERS, NEW = 4, 10
LENGTHS = (1, 2, 5, 8, 13, 24, 40)
BATCH = Batch(groups=1, slots=3, max_length=80, prefill_chunk=16)
WAYS = {
    "all streamed": Streaming(layers=0, head=False, buffers=2, groups=9),
    "one buffer": Streaming(layers=0, head=False, buffers=1, groups=9),
    "part resident": Streaming(layers=2, head=True, buffers=2, groups=9),
    "all but the head": Streaming(layers=4, head=False, buffers=1, groups=9),
    "spilled": Streaming(layers=1, head=False, buffers=2, groups=1),
    "all spilled": Streaming(layers=0, head=True, buffers=3, groups=0),
}


def plan_of(batch: Batch, dtype: str = "float32") -> Plan:
    return Plan(
        fits=True,
        reasons=[],
        strategy="streamed",
        device="cpu",
        dtype=dtype,
        parameters=1,
        weights_bytes=1,
        kv_bytes_per_token=1,
        world_size=1,
        ranks_per_node=1,
        nodes=1,
        devices=[],
        placements=[],
        batch=batch,
    )


def requests(text: Text) -> list[Request]:
    letters = random.Random(0)
    prompts = ["".join(letters.choices("QWZXJK", k=n - 1)) for n in LENGTHS]
    rows = [
        Request(n, f"row-{n}", Sampling(max_new_tokens=NEW - n % 3), prompt)
        for n, prompt in enumerate(prompts)
    ]
    assert max(len(text.encode(row)) for row in rows) + NEW <= BATCH.max_length
    return rows


def run(model: StepModel, text: Text, batch: Batch) -> list[str]:
    rows, found = iter(requests(text)), {}

    def emit(row: Generation | Failure) -> None:
        assert isinstance(row, Generation), row
        found[row.index] = row.text

    Engine(model, text, batch).run(lambda: next(rows, None), emit)
    model.close()
    return [found[index] for index in range(len(LENGTHS))]


class Case:
    """A model's directory, and what the whole model says."""

    def __init__(self, path: Path, dtype: str = "float32") -> None:
        torch.set_num_threads(1)
        self.path, self.dtype = path, dtype
        self.spec = ModelSpec(path=str(path), dtype=dtype)
        self.text = Text.load(self.spec, max_length=80)
        whole = LocalStepModel(load_model(self.spec, Loading(dtype)), BATCH, NullRecorder())
        self.texts = run(whole, self.text, BATCH)

    def streamed(
        self, way: Streaming, batch: Batch = BATCH, folder: Path | None = None
    ) -> StreamedStepModel:
        plan = plan_of(batch, self.dtype)
        return load_streamed(self.spec, plan, way, NullRecorder(), str(folder) if folder else None)
