"""Recipes: which bytes of a checkpoint make which parameter of a model, so that any layer can be read by itself.

Names and fusions are transformers' own: its table of renames and converters is asked, tensor by tensor, as
its loader does. A converter is followed where its result is its sources end to end; others are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from launcher.errors import PreflightError
from launcher.model.weights import check_loaded
from launcher.plan.checkpoint import Checkpoint
from launcher.plan.headers import TensorInfo

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Source:
    """A tensor of the checkpoint, and the element of the parameter at which it begins."""

    tensor: TensorInfo
    at: int

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.tensor.dtype]


@dataclass(frozen=True)
class Recipe:
    """How a parameter is put together: its sources fill it without a gap."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    sources: tuple[Source, ...]

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


def recipes(model: Any, checkpoint: Checkpoint) -> dict[str, Recipe]:
    """A recipe for every name in the state dict of ``model``, which may be on the meta device.

    Raises WeightsError for weights that are missing, left over or of another shape, NotEndToEnd for
    those that only a computation makes of the checkpoint's.
    """
    found, unexpected = _collected(model, checkpoint.tensors)
    state = model.state_dict()
    made: dict[str, Recipe] = {}
    wrong = []
    for name, group in found.items():
        try:
            made[name] = group.recipe(state[name])
        except _OtherShape:
            wrong.append(name)
        except _Unlike as error:
            raise NotEndToEnd(
                f"the checkpoint can't be read by parts: {error} ({name})",
                where=checkpoint.where,
                cause="transformers computes these weights from the checkpoint's while it loads",
                fix="use strategy sequential",
            ) from None
    for one, other in model.all_tied_weights_keys.items():
        for target, source in ((one, other), (other, one)):
            if target not in made and source in made:
                made[target] = made[source]
    missing = state.keys() - made.keys() - set(wrong)
    optional = model._keys_to_ignore_on_load_missing or ()
    if any(re.search(pattern, name) for pattern in optional for name in missing):
        raise NotEndToEnd(
            f"the model makes up weights that the checkpoint lacks ({min(missing)})",
            where=checkpoint.where,
            fix="use strategy sequential",
        )
    ignored = model._keys_to_ignore_on_load_unexpected or ()
    info = {
        "missing_keys": missing,
        "mismatched_keys": wrong,
        "unexpected_keys": {n for n in unexpected if not any(re.search(p, n) for p in ignored)},
        "error_msgs": [],
    }
    check_loaded(checkpoint.where, model, info)
    return made


class NotEndToEnd(PreflightError):
    """Parameters of a model are not bytes of its checkpoint one after the other."""


class _Unlike(Exception):
    """A parameter is not its sources' bytes one after the other; says why."""


class _OtherShape(Exception):
    """Sources and parameter differ in shape."""


@dataclass
class _Group:
    """The tensors that go into one parameter, by the converter's pattern that each matched."""

    converter: WeightConverter | None
    parts: dict[str, list[TensorInfo]]

    def recipe(self, parameter: torch.Tensor) -> Recipe:
        whole = torch.empty(parameter.shape, device="meta")
        sources = []
        for tensor, view in self._places(whole):
            if tensor.shape != tuple(view.shape):
                raise _OtherShape
            if not view.is_contiguous():
                raise _Unlike("the sources of a weight are interleaved in it")
            if tensor.dtype not in DTYPES:
                raise _Unlike(f"{tensor.dtype} is not a dtype of plain weights")
            sources.append(Source(tensor, int(view.storage_offset())))
        if sum(source.tensor.numel for source in sources) != whole.numel():
            raise _OtherShape
        return Recipe(tuple(parameter.shape), parameter.dtype, tuple(sources))

    def _places(self, whole: torch.Tensor) -> list[tuple[TensorInfo, torch.Tensor]]:
        """Each tensor with the part of ``whole`` that it becomes."""
        if self.converter is None:
            tensors = [tensor for part in self.parts.values() for tensor in part]
            if len(tensors) > 1:
                raise _Unlike("several tensors have the same name in the model")
            return [(tensors[0], whole)]
        merged, joined = _operations(self.converter)
        ordered = [self.parts[p] for p in self.converter.source_patterns if p in self.parts]
        if joined is None:
            pieces = [whole] if len(ordered) == 1 else []
        else:
            axis = joined - 1 if merged else joined
            if not 0 <= axis < len(ordered[0][0].shape) or joined >= whole.dim():
                raise _OtherShape
            # Merged tensors are stacked before they are joined, so their own axes are one behind.
            sizes = [
                t.shape[axis] for tensors in ordered for t in (tensors[:1] if merged else tensors)
            ]
            if sum(sizes) != whole.shape[joined]:
                raise _OtherShape
            pieces = list(whole.split(sizes, dim=joined))
        if not merged:
            flat = [tensor for tensors in ordered for tensor in tensors]
            return list(zip(flat, pieces, strict=True))
        if len(pieces) != len(ordered) or any(
            len(t) != len(p) for t, p in zip(ordered, pieces, strict=True)
        ):
            raise _OtherShape
        return [
            (tensor, view)
            for tensors, piece in zip(ordered, pieces, strict=True)
            for tensor, view in zip(tensors, piece.unbind(0), strict=True)
        ]


def _operations(converter: WeightConverter) -> tuple[bool, int | None]:
    """Whether sources are stacked, and along which axis of the parameter they are joined, if at all."""
    kinds = [type(operation) for operation in converter.operations]
    known = ([MergeModulelist], [MergeModulelist, Concatenate], [Concatenate])
    if len(converter.target_patterns) != 1 or kinds not in known:
        names = ", ".join(kind.__name__ for kind in kinds)
        raise _Unlike(f"weights are made by {names}")
    stacked = [o for o in converter.operations if isinstance(o, MergeModulelist)]
    joined = [o for o in converter.operations if isinstance(o, Concatenate)]
    if any(operation.dim != 0 for operation in stacked) or any(o.dim < 0 for o in joined):
        raise _Unlike("weights are stacked along another axis than the first")
    return bool(stacked), joined[0].dim if joined else None


def _collected(model: Any, tensors: Mapping[str, TensorInfo]) -> tuple[dict[str, _Group], set[str]]:
    """The groups by their parameter's name, and the tensors that go nowhere: the loader's own steps, in its order."""
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
    state, prefix = model.state_dict(), model.base_model_prefix
    found: dict[str, _Group] = {}
    unexpected = set()
    for key in sorted(tensors, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, prefix, state)
        if name not in state and key in state:
            name, pattern = rename_source_key(key, [], [], prefix, state)
        if name not in state:
            unexpected.add(name)
            continue
        converter = by_pattern[pattern] if pattern is not None else None
        group = found.setdefault(name, _Group(converter, {}))
        group.parts.setdefault(pattern or "", []).append(tensors[key])
    return found, unexpected
