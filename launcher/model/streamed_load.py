"""Loading a model to be streamed: what stays is read at once, for the rest there are recipes and a reader."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from launcher.job.spec import ModelSpec
from launcher.measure.spans import Recorder
from launcher.model.direct import load
from launcher.model.local import LocalStepModel
from launcher.model.packed import pack_linears
from launcher.model.pages import Pages
from launcher.model.reader import Reader, Unit
from launcher.model.recipe import Recipe, recipes
from launcher.model.runner import StageRunner
from launcher.model.skeleton import Skeleton
from launcher.model.spill import FileSpill, HostSpill, Spill
from launcher.model.stage import unsplittable
from launcher.model.streamed import Embedding, HeadBlock, LayerBlock, Parts, StreamedStepModel
from launcher.model.turned import turn_linears
from launcher.model.weight_files import WeightFiles
from launcher.model.weights import Loading
from launcher.plan.checkpoint import Checkpoint
from launcher.plan.hardware import memory_here
from launcher.plan.plan import Plan, Streaming


def load_streamed(
    spec: ModelSpec,
    plan: Plan,
    streaming: Streaming,
    recorder: Recorder,
    spill_dir: str | None = None,
) -> StreamedStepModel:
    """The model of ``spec`` in the parts that ``streaming`` says, on this rank's device.

    Raises WeightsError for a checkpoint that is not whole, PreflightError for a model that can't be streamed.
    """
    device = torch.device("cuda", 0) if plan.device == "cuda" else torch.device("cpu")
    checkpoint = Checkpoint.read(Path(spec.path))
    total = checkpoint.dims.layers
    skeleton = Skeleton(spec, plan.dtype, total, device)
    found = recipes(skeleton.model, checkpoint)
    embedding, layers, head = _units(skeleton, found)
    read = [*layers[streaming.layers :], *([] if streaming.head else [head])]
    each_sweep = sum(unit.nbytes for unit in read)
    files = WeightFiles(
        Path(spec.path),
        (source.tensor.file for recipe in found.values() for source in recipe.sources),
        keep=each_sweep < memory_here()[1] // 2,
    )
    _load_residents(skeleton, files, layers[: streaming.layers], head if streaming.head else None)
    if device.type == "cpu":
        turn_linears(skeleton.model)
    files.bytes_read, files.seconds = 0, 0.0  # from here on it is what sweeps read
    spill = _spill(plan, streaming, device, spill_dir)
    runs = _runs(streaming.layers, total, alone=spill is not None)
    blocks: list[LayerBlock | HeadBlock] = [
        LayerBlock(
            StageRunner(skeleton.block(first, last), plan.batch, first=False, last=False),
            number,
            spill,
            streaming.groups,
        )
        for number, (first, last) in enumerate(runs)
    ]
    parts = Parts(
        embedding=Embedding(skeleton, embedding, files),
        blocks=[*blocks, HeadBlock(skeleton.head(), plan.batch.slots)],
        streamed=[*(first >= streaming.layers for first, _ in runs), not streaming.head],
        files=files,
        reader=_reader(read, files, streaming.buffers, device),
        spill=spill,
    )
    return StreamedStepModel(parts, device, plan.batch.groups, recorder)


def _units(skeleton: Skeleton, found: Mapping[str, Recipe]) -> tuple[Recipe, list[Unit], Unit]:
    """The embedding, the layers, and what is behind them. Raises PreflightError where that is not all there is."""
    model, table = skeleton.model, f"{skeleton.embedding_prefix}.weight"
    layers = [Unit.of(model, [prefix], found) for prefix in skeleton.layer_prefixes]
    head = Unit.of(model, skeleton.head_prefixes, found)
    held = 1 + sum(len(unit.slots) for unit in (*layers, head))
    if held != len(found) or len(found[table].sources) != 1:
        raise unsplittable(model.config, "it has weights outside of embedding, layers and head")
    return found[table], layers, head


def _reader(
    read: list[Unit], files: WeightFiles, buffers: int, device: torch.device
) -> Reader | Pages | None:
    if not read:
        return None
    pages = Pages.of(read, files, ahead=max(1, buffers - 1)) if device.type == "cpu" else None
    return pages or Reader(read, files, buffers, device)


def _load_residents(
    skeleton: Skeleton, files: WeightFiles, layers: list[Unit], head: Unit | None
) -> None:
    """Layer by layer, since packing takes room for a second copy."""
    for unit, layer in zip(layers, skeleton.layers, strict=False):
        unit.load(files, skeleton.device)
        pack_linears(layer)
    if head is not None:
        head.load(files, skeleton.device)
        pack_linears(skeleton.model.get_submodule(skeleton.head_prefixes[1].rpartition(".")[0]))


def _runs(resident: int, total: int, alone: bool) -> list[tuple[int, int]]:
    """First and last layer of each block: those that stay together, unless caches come and go, others ``alone``."""
    streamed = [(number, number) for number in range(resident, total)]
    if not resident or alone:
        return [*((number, number) for number in range(resident)), *streamed]
    return [(0, resident - 1), *streamed]


def _spill(
    plan: Plan, streaming: Streaming, device: torch.device, folder: str | None
) -> Spill | None:
    if streaming.groups >= plan.batch.groups:
        return None
    if device.type == "cuda":
        return HostSpill(device)
    return FileSpill(folder, streaming.spilled_bytes)


def load_whole(spec: ModelSpec, plan: Plan, recorder: Recorder) -> LocalStepModel:
    """All of the model of ``spec`` in this rank's memory."""
    model = load(spec, Loading(plan.dtype, {"": 0} if plan.device == "cuda" else None))
    if plan.device == "cpu":
        pack_linears(model)
    return LocalStepModel(model, plan.batch, recorder)
