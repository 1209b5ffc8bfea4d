"""Streaming from files: those that change, lack something, or are mapped; disks that are full."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from models import make_model
from safetensors.torch import load_file, save_file
from streamed_cases import BATCH, LAYERS, WAYS, Case, run
from transformers.core_model_loading import Transpose, WeightConverter

from launcher.errors import LauncherError, PreflightError, WeightsError
from launcher.job.spec import ModelSpec
from launcher.model import recipe
from launcher.model.pages import Pages
from launcher.model.reader import Reader
from launcher.model.spill import FileSpill
from launcher.model.streamed import StreamedStepModel


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(make_model(tmp_path_factory.mktemp("llama"), "llama", num_hidden_layers=LAYERS))


def copy_of(case: Case, folder: Path) -> Case:
    shutil.copytree(case.path, folder)
    other = Case.__new__(Case)
    other.__dict__.update(case.__dict__, path=folder, spec=ModelSpec(path=str(folder)))
    return other


def in_two_sweeps(case: Case, model: StreamedStepModel, between: Callable[[], object]) -> None:
    """Run the engine, with ``between`` called after the first sweep."""
    sweeps = iter(range(100))
    collect = model.collect

    def collecting() -> torch.Tensor:
        if next(sweeps) == 1:
            between()
        return collect()

    model.collect = collecting  # type: ignore[method-assign]
    run(model, case.text, BATCH)


def test_file_that_is_deleted_under_way_is_still_read(llama: Case, tmp_path: Path) -> None:
    case = copy_of(llama, tmp_path / "copy")
    model = case.streamed(WAYS["all streamed"])
    in_two_sweeps(case, model, (case.path / "model.safetensors").unlink)


@pytest.mark.parametrize("size", [0, 100_000, 200_000])
@pytest.mark.parametrize("copied", [False, True], ids=["in place", "copied"])
def test_file_that_is_cut_short_under_way(
    llama: Case, tmp_path: Path, request: pytest.FixtureRequest, size: int, copied: bool
) -> None:
    if copied:
        request.getfixturevalue("too_large")
    case = copy_of(llama, tmp_path / "copy")
    model = case.streamed(WAYS["one buffer"])
    weights = case.path / "model.safetensors"
    with pytest.raises(WeightsError) as caught:
        in_two_sweeps(case, model, lambda: os.truncate(weights, size))
    assert str(weights) in str(caught.value)
    assert "resume" in str(caught.value)
    model.close()


def test_file_that_is_overwritten_under_way(llama: Case, tmp_path: Path) -> None:
    case = copy_of(llama, tmp_path / "copy")
    model = case.streamed(WAYS["one buffer"])
    weights = case.path / "model.safetensors"
    with pytest.raises(WeightsError, match="it was changed"):
        in_two_sweeps(case, model, lambda: weights.write_bytes(weights.read_bytes()))
    model.close()


def test_a_cache_on_disk_that_would_be_in_memory_is_refused(llama: Case) -> None:
    with pytest.raises(LauncherError, match="this folder is in memory") as caught:
        llama.streamed(WAYS["all spilled"], folder=Path("/dev/shm"))
    assert "spill_dir" in str(caught.value)


def test_disk_that_is_full(llama: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.model.spill.in_memory", lambda _: False)
    model = llama.streamed(WAYS["all spilled"], folder=Path("/dev/shm"))
    full = os.open("/dev/full", os.O_RDWR)
    spill = model._parts.spill
    assert isinstance(spill, FileSpill)
    os.dup2(full, spill._file.fileno())
    with pytest.raises(LauncherError) as caught:
        run(model, llama.text, BATCH)
    assert "No space left on device" in str(caught.value)
    assert "spill_dir" in str(caught.value)
    os.close(full)
    model.close()


def test_folder_that_can_not_hold_the_cache(llama: Case) -> None:
    with pytest.raises(LauncherError, match="KV cache") as caught:
        llama.streamed(WAYS["all spilled"], folder=Path("/proc/nowhere"))
    assert "/proc/nowhere" in str(caught.value)


def test_weights_that_are_missing(llama: Case, tmp_path: Path) -> None:
    case = copy_of(llama, tmp_path / "copy")
    weights = load_file(case.path / "model.safetensors")
    weights["model.layers.1.self_attn.q_proj.bias"] = torch.zeros(64)
    save_file(weights, case.path / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match="leave out"):
        case.streamed(WAYS["all streamed"])


def test_weights_that_are_computed_are_refused(
    llama: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = WeightConverter(
        source_patterns=[".q_proj.weight"],
        target_patterns=".q_proj.weight",
        operations=[Transpose(0, 1)],
    )
    monkeypatch.setattr(recipe, "get_model_conversion_mapping", lambda model: [computed])
    with pytest.raises(PreflightError, match="made by Transpose"):
        llama.streamed(WAYS["all streamed"])


@pytest.fixture
def too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are larger than what memory the page cache may have."""
    monkeypatch.setattr("launcher.model.streamed_load.memory_here", lambda: (1000, 1000))


@pytest.mark.usefixtures("too_large")
def test_reader_ends_while_nobody_takes(llama: Case) -> None:
    before = set(threading.enumerate())  # some of them may end meanwhile
    model = llama.streamed(WAYS["all streamed"])
    (reading,) = set(threading.enumerate()) - before
    assert reading.is_alive()
    model.close()
    assert not reading.is_alive()


@pytest.mark.usefixtures("too_large")
def test_nothing_of_a_unit_stays_behind(llama: Case) -> None:
    """Between its turns a layer has no weights: they are the buffer's, which then holds another layer's."""
    model = llama.streamed(WAYS["one buffer"])
    assert run(model, llama.text, BATCH) == llama.texts
    reader = model._parts.reader
    assert isinstance(reader, Reader)
    for unit in reader._units:
        assert all(getattr(slot.module, slot.name).is_meta for slot in unit.slots)


def test_weights_are_computed_with_where_the_page_cache_has_them(llama: Case) -> None:
    model = llama.streamed(WAYS["all streamed"])
    assert run(model, llama.text, BATCH) == llama.texts
    pages = model._parts.reader
    assert isinstance(pages, Pages)
    assert len(pages._parts) == LAYERS + 1
    for part in pages._parts:
        assert all(getattr(slot.module, slot.name).is_meta for slot, _ in part.values)


@pytest.mark.parametrize(("there", "rounds"), [(0.0, 1), (float("inf"), None)])
def test_pages_that_were_there_are_not_asked_for_again(
    there: float, rounds: int | None, llama: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``there``: all pages come at once, or never soon enough."""
    taken, asked = 0, 0

    def count(pages: Pages, number: int) -> None:
        nonlocal asked
        asked += 1

    def take(pages: Pages) -> None:
        nonlocal taken
        taken += 1
        really(pages)

    really = Pages.take
    monkeypatch.setattr("launcher.model.pages.THERE", there)
    monkeypatch.setattr(Pages, "_expect", count)
    monkeypatch.setattr(Pages, "take", take)
    model = llama.streamed(WAYS["all streamed"])
    run(model, llama.text, BATCH)
    assert taken > LAYERS + 1
    assert asked == (rounds * (LAYERS + 1) if rounds else taken)


def test_files_that_can_not_be_mapped_are_read(
    llama: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, size: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr("launcher.model.weight_files.MappedFile", refuse)
    model = llama.streamed(WAYS["all streamed"])
    assert isinstance(model._parts.reader, Reader)
    assert run(model, llama.text, BATCH) == llama.texts


def test_weights_in_another_dtype_are_read_and_cast(llama: Case) -> None:
    case = Case(llama.path, "bfloat16")
    model = case.streamed(WAYS["all streamed"])
    assert isinstance(model._parts.reader, Reader)
    assert run(model, case.text, BATCH) == case.texts


def test_figures_count_what_sweeps_read(llama: Case) -> None:
    model = llama.streamed(WAYS["one buffer"])
    told = 0

    def progress() -> None:
        nonlocal told
        told += 1

    model.on_progress = progress
    run(model, llama.text, BATCH)
    pages = model._parts.reader
    assert isinstance(pages, Pages)
    weights = sum(slot.recipe.nbytes for part in pages._parts for slot, _ in part.values)
    each = 1 + LAYERS + 1  # one step per sweep: embedding, layers, head
    assert told % each == 0
    whole = told // each
    read = model._parts.files.bytes_read
    # Embedding rows come on top, and what was read ahead for a sweep that never came.
    assert whole * weights <= read <= (whole + 1.2) * weights
