"""One rank's shard of a model, by transformers' own plan for tensor parallelism and its reader of shards.

The library says for each of its models how every weight is cut (``_tp_plan``, the styles that
DistributedConfig(tp_size=N) applies), and of a parameter that is a DTensor its loader reads this rank's part
alone. What runs afterwards is ours: plain tensors in plain modules, whose linear layers can be packed and whose
exchanges are timed and name the ranks that fail. Beside tensor_parallel_backend.py, which cuts by the same plan, and launcher/plan/cuts.py, no file
knows the library's styles; they are the same under transformers 5.17 and 5.23.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import Placement, _StridedShard

from launcher.errors import PreflightError
from launcher.model.group import TensorGroup, share
from launcher.plan.cuts import (
    COLUMNS,
    EMBEDDING,
    EXPERTS,
    FUSED,
    GATHERED,
    ROWS,
    SPLIT,
    WHOLE,
    why_uncut,
)
from launcher.plan.dims import Dims
from launcher.plan.shards import heads_are_whole

# Where the heads can't be shared by the ranks, attention is computed by each of them and only its projections are cut.
ALL_HEADS = {COLUMNS: GATHERED[0], ROWS: SPLIT[0]}
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
ATTENTION = re.compile(r"(^|\.)(self_attn|attention|attn)\.")


class Sharding:
    """This rank's part of every tensor of a model that ``group`` holds together."""

    def __init__(self, group: TensorGroup) -> None:
        self.group = group
        self._styles: dict[str, str] = {}

    def cut(self, model: Any) -> None:
        """Have the loader read this rank's part alone; ``model`` has no weights yet.

        Raises PreflightError where the library has no plan for it, or one that is not known here.
        """
        dims = Dims.of(model.config.to_dict())
        self._styles = styles_of(model, heads_are_whole(dims, len(self.group)))
        mesh = DeviceMesh.from_group(self.group.handle, self.group.device)
        parts: dict[nn.Parameter, nn.Parameter] = {}  # tied parameters stay one tensor
        for name, module in model.named_modules():
            for own, parameter in module._parameters.items():
                style = self._styles.get(f"{name}.{own}") or self._styles.get(name)
                placement = placement_of(style, own, parameter)
                if placement is None:
                    continue
                if parameter not in parts:
                    part = distribute_tensor(parameter, mesh, [placement], src_data_rank=None)
                    parts[parameter] = nn.Parameter(part, requires_grad=False)
                module._parameters[own] = parts[parameter]

    def settle(self, model: Any) -> None:
        """Make the model that was loaded one that runs: plain tensors, and modules that exchange their results."""
        plain: dict[int, nn.Parameter] = {}  # tied parameters stay one tensor
        for module in model.modules():
            for own, parameter in module._parameters.items():
                if isinstance(parameter, DTensor):
                    part = nn.Parameter(parameter.to_local(), requires_grad=False)
                    module._parameters[own] = plain.setdefault(id(parameter), part)
        for name, style in self._styles.items():
            parent, _, own = name.rpartition(".")
            module = model.get_submodule(parent)._modules.get(own)
            if module is not None:
                setattr(model.get_submodule(parent), own, _exchanging(module, style, self.group))


class AddedUp(nn.Module):
    """What ``inner`` computes from this rank's part, added up over the ranks; its bias is added once."""

    def __init__(self, inner: nn.Module, group: TensorGroup, columns: slice | None = None) -> None:
        super().__init__()
        self.inner, self._group, self._columns = inner, group, columns
        self.bias: nn.Parameter | None = None
        if isinstance(inner, nn.Linear):
            self.bias, inner.bias = inner.bias, None  # type: ignore[assignment]

    def forward(self, inputs: torch.Tensor, *others: Any, **options: Any) -> torch.Tensor:
        """As ``inner``; of whole inputs it takes ``columns``."""
        if self._columns is not None:
            inputs = inputs[..., self._columns]
        result = self._group.add_up(self.inner(inputs, *others, **options).contiguous())
        return result if self.bias is None else result.add_(self.bias)


class Gathered(nn.Module):
    """All ``width`` columns of what the ranks compute of a linear layer."""

    def __init__(self, inner: nn.Module, group: TensorGroup, width: int) -> None:
        super().__init__()
        self.inner, self._group, self._width = inner, group, width

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(..., width)."""
        return self._group.put_together(self.inner(inputs), self._width)


class KnownTokens(nn.Module):
    """An embedding of which every rank has the rows of some tokens."""

    def __init__(self, inner: nn.Embedding, group: TensorGroup, vocabulary: int) -> None:
        super().__init__()
        inner.padding_idx = None  # of all tokens; it matters to gradients alone
        self.inner, self._group = inner, group
        self._first, self._end = share(vocabulary, len(group), group.index)

    @property
    def weight(self) -> torch.Tensor:
        """This rank's rows."""
        return self.inner.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(b, q, d)."""
        known = (tokens >= self._first) & (tokens < self._end)
        found = self.inner((tokens - self._first).where(known, 0))
        return self._group.add_up(found.where(known[..., None], 0))


def styles_of(model: Any, all_heads: bool) -> dict[str, str]:
    """The style of every module and parameter that the library's plan names, and of the embedding."""
    plan = dict(model._tp_plan or {})
    if reason := why_uncut(plan):
        raise _unknown(model, reason)
    embedding = model.get_input_embeddings()
    styles = {}
    for name, module in _named(model):
        style = plan.get(NUMBER.sub("*", name))
        if module is embedding and isinstance(module, nn.Embedding):
            style = EMBEDDING
        if all_heads and ATTENTION.search(name):
            style = ALL_HEADS.get(style or "", style)
        if style is not None and not isinstance(module, nn.Identity):
            _check(model, name, module, style)
            styles[name] = style
    return styles


def _check(model: Any, name: str, module: Any, style: str) -> None:
    """Refuse what would go wrong in silence: kinds of layers whose parts are put together in other ways."""
    if isinstance(module, nn.Parameter) or style in (EMBEDDING, *WHOLE):
        return
    if style == EXPERTS:
        wrong = any("bias" in own for own in module._parameters)  # they would be added up, too
    else:
        wrong = not isinstance(module, nn.Linear)
    if wrong:
        raise _unknown(model, f"{name} is a {type(module).__name__}")


def _named(model: nn.Module) -> Iterator[tuple[str, Any]]:
    yield from model.named_modules()
    yield from model.named_parameters()


def placement_of(style: str | None, name: str, parameter: torch.Tensor | None) -> Placement | None:
    """The dimension along which a parameter is cut; None where every rank has all of it."""
    if parameter is None or style is None:
        return None
    outputs = max(0, parameter.ndim - 2)  # experts have a dimension before them
    if style in (COLUMNS, *GATHERED, EMBEDDING):
        return Shard(outputs)
    if style in (ROWS, *SPLIT):
        return None if name == "bias" else Shard(parameter.ndim - 1)
    if style == FUSED:
        return _StridedShard(outputs, split_factor=2)
    return None


def _exchanging(module: Any, style: str, group: TensorGroup) -> nn.Module:
    """``module``, or it in what makes the ranks' results one."""
    if style == EMBEDDING:
        return KnownTokens(module, group, module.num_embeddings)
    if style == EXPERTS:
        return AddedUp(module, group)
    if style in WHOLE:
        return module
    inputs, outputs = module.in_features, module.out_features  # of the whole
    module.out_features, module.in_features = module.weight.shape
    if style in GATHERED:
        return Gathered(module, group, outputs)
    if style in (ROWS, *SPLIT):
        columns = slice(*share(inputs, len(group), group.index)) if style in SPLIT else None
        return AddedUp(module, group, columns)
    return module


def _unknown(model: Any, why: str) -> PreflightError:
    return PreflightError(
        f"models of type {model.config.model_type} can't be split by tensors: {why}",
        where="parallel.tensor",
        fix="use strategy pipeline or sequential",
    )
