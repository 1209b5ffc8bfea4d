"""One rank's part of a parameter that a tensor group shares, read without the rest of it wherever files allow that."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import _StridedShard

from launcher.model.group import share
from launcher.model.recipe import Recipe
from launcher.model.weight_files import CHUNK, WeightFiles


@dataclass(frozen=True)
class Part:
    """Of dimension ``dim`` of a parameter these ``ranges`` (first and end), one after the other."""

    dim: int
    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, parameter: torch.Tensor) -> Part | None:
        """What this rank holds of a DTensor; None of a plain tensor, which it holds all of."""
        if not isinstance(parameter, DTensor):
            return None
        (placement,), mesh = parameter.placements, parameter.device_mesh
        dim: int = placement.dim  # type: ignore[attr-defined]
        count = placement.split_factor if isinstance(placement, _StridedShard) else 1
        width = parameter.shape[dim] // count
        first, end = share(width, mesh.size(), mesh.get_local_rank())
        return cls(dim, tuple((n * width + first, n * width + end) for n in range(count)))

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """Of the part of a parameter of shape ``whole``."""
        held = sum(end - first for first, end in self.ranges)
        return (*whole[: self.dim], held, *whole[self.dim + 1 :])


def load_part(files: WeightFiles, recipe: Recipe, part: Part, device: torch.device) -> torch.Tensor:
    """``part`` of the parameter of ``recipe`` on ``device``. Raises WeightsError.

    Of a matrix that is cut by columns, rows are read whole: a few KiB of each, read by themselves, would take longer
    than what lies between them.
    """
    value = torch.empty(part.shape(recipe.shape), dtype=recipe.dtype)
    by_columns = 0 < part.dim == len(recipe.shape) - 1
    (_load_columns if by_columns else _load_rows)(files, recipe, part, value)
    return value.to(device)


def _load_rows(files: WeightFiles, recipe: Recipe, part: Part, value: torch.Tensor) -> None:
    flat, done = value.view(-1), 0
    width, inner = recipe.shape[part.dim], prod(recipe.shape[part.dim + 1 :])
    for outer in range(prod(recipe.shape[: part.dim])):
        for first, end in part.ranges:
            count = (end - first) * inner
            files.fill(recipe, flat[done : done + count], (outer * width + first) * inner)
            done += count


def _load_columns(files: WeightFiles, recipe: Recipe, part: Part, value: torch.Tensor) -> None:
    ((first, end),), width = part.ranges, recipe.shape[-1]
    table = value.view(-1, end - first)
    scratch = torch.empty(max(1, CHUNK // (width * value.itemsize)), width, dtype=value.dtype)
    for row in range(0, len(table), len(scratch)):
        own = table[row : row + len(scratch)]
        rows = scratch[: len(own)]
        files.fill(recipe, rows.view(-1), row * width)
        own.copy_(rows[:, first:end])
