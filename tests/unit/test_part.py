"""A rank's part of a parameter: the same numbers as a slice of the whole, and no more of the files than has to be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from launcher.model import part as parts
from launcher.model.part import Part, load_part
from launcher.model.recipe import DTYPES, Recipe, Source
from launcher.model.weight_files import WeightFiles
from launcher.plan.headers import read_header

FILE = "model.safetensors"


def saved(folder: Path, *tensors: torch.Tensor, dtype: torch.dtype | None = None) -> Recipe:
    """The recipe of these tensors end to end: one as it is, several as experts stacked."""
    names = [f"t{number}" for number in range(len(tensors))]
    save_file(dict(zip(names, tensors, strict=True)), folder / FILE)
    found = read_header(folder / FILE)
    shape = tuple(tensors[0].shape) if len(tensors) == 1 else (len(tensors), *tensors[0].shape)
    sources = [Source(found[name], n * tensors[0].numel()) for n, name in enumerate(names)]
    return Recipe(shape, dtype or DTYPES[found["t0"].dtype], tuple(sources))


def loaded(folder: Path, recipe: Recipe, part: Part) -> tuple[torch.Tensor, int]:
    """The part and the bytes that were read for it."""
    files = WeightFiles(folder, [FILE], ahead=False)
    try:
        return load_part(files, recipe, part, torch.device("cpu")), files.bytes_read
    finally:
        files.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ranges", [((0, 4),), ((7, 10),), ((2, 4), (7, 9))], ids=str)
def test_rows_are_read_alone(
    tmp_path: Path, ranges: tuple[tuple[int, int], ...], dtype: torch.dtype
) -> None:
    """Those of a plain matrix and of experts, which are a tensor each; ``ranges`` as of two matrices end to end."""
    part = Part(0, ranges)
    whole = torch.randn(10, 6)
    found, read = loaded(tmp_path, saved(tmp_path, whole, dtype=dtype), part)
    expected = torch.cat([whole[first:end] for first, end in ranges])
    assert torch.equal(found, expected.to(dtype))
    assert read == expected.numel() * 4

    experts = [torch.randn(10, 6) for _ in range(3)]
    part = Part(1, ranges)
    found, read = loaded(tmp_path, saved(tmp_path, *experts, dtype=dtype), part)
    expected = torch.cat([torch.stack(experts)[:, first:end] for first, end in ranges], dim=1)
    assert torch.equal(found, expected.to(dtype))
    assert read == expected.numel() * 4


@pytest.mark.parametrize("scratch", [1, 100, 1 << 20])
def test_columns_are_taken_of_whole_rows(
    tmp_path: Path, scratch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "CHUNK", scratch)
    whole = torch.randn(7, 12)
    found, read = loaded(tmp_path, saved(tmp_path, whole), Part(1, ((4, 9),)))
    assert torch.equal(found, whole[:, 4:9])
    assert read == whole.numel() * 4
    experts = [torch.randn(5, 12) for _ in range(2)]
    found, _ = loaded(tmp_path, saved(tmp_path, *experts), Part(2, ((8, 12),)))
    assert torch.equal(found, torch.stack(experts)[..., 8:])


def test_a_bias_is_cut_like_its_rows(tmp_path: Path) -> None:
    whole = torch.randn(9)
    found, read = loaded(tmp_path, saved(tmp_path, whole), Part(0, ((3, 6),)))
    assert torch.equal(found, whole[3:6])
    assert read == 12
