"""Checkpoint: what a model's files hold, from their headers alone: names, shapes, bytes. No torch."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from launcher.errors import WeightsError
from launcher.plan.complete import missing_tensors, surplus_tensors, wrong_shapes
from launcher.plan.dims import Config, Dims, text_config
from launcher.plan.folder import has_weights, merge, no_weights, read_object, read_tensors, some
from launcher.plan.headers import TensorInfo, check_header
from launcher.plan.outline import HEAD, Outline, Part, layer_prefix, outline
from launcher.plan.quantized import why_quantized
from launcher.plan.shapes import FAMILIES, Shapes, family, is_tied, known_config, parameters

Found = TypeVar("Found")

DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}
# Tensors that old checkpoints hold but no parameter takes: rotary tables and causal masks.
BUFFER = re.compile(r"rotary_emb\.inv_freq$|(^|\.)(attn|attention)\.(masked_)?bias$")
EXPERT = re.compile(r"\.experts\.\d+\.")  # transformers keeps those of a layer in one tensor


@dataclass(frozen=True)
class Checkpoint:
    """A model's config and tensors. ``note`` says where the shapes come from if not from its files; ``bare``: there
    are no weights to look at, or to load."""

    config: Config
    tensors: Mapping[str, TensorInfo]
    where: str
    path: Path | None = None
    note: str | None = None
    bare: bool = False

    @classmethod
    def read(cls, path: Path, *, bare: bool = False) -> Checkpoint:
        """The checkpoint in a directory: model.safetensors, or an index and its shards; where a ``bare`` one will do,
        a config without any weights, too.

        Raises WeightsError, naming the file, for anything that is missing, truncated, inconsistent
        or outside of the directory, and for pickled weights, which could run code.
        """
        if not path.is_dir():
            raise WeightsError(
                "there is no such model directory",
                where=str(path),
                fix="give model.path a directory or a hub id such as meta-llama/Llama-2-70b-hf",
            )
        config = read_object(path, "config.json")
        if bare and not has_weights(path):
            return cls.from_config(config, where=str(path))
        return cls._checked(config, read_tensors(path), where=str(path), path=path)

    @classmethod
    def from_headers(
        cls, config: Config, headers: Mapping[str, Any], where: str = "the hub"
    ) -> Checkpoint:
        """From a hub's metadata: ``headers`` maps file names to the JSON objects in their headers."""
        tensors: dict[str, TensorInfo] = {}
        for name, header in sorted(headers.items()):
            merge(tensors, check_header(header, name), where)
        return cls._checked(
            config,
            tensors,
            where,
            note="shapes are those of the hub's metadata, nothing is fetched yet",
        )

    @classmethod
    def from_config(cls, config: Config, where: str = "config.json") -> Checkpoint:
        """A model that has no files (yet), in the dtype that its config names, else float32.

        Raises WeightsError for a model type whose shapes are not known here.
        """
        _check_plain(config, {}, where)
        if family(config) is None:
            raise WeightsError(
                f"the config alone does not tell the shapes of a {config.get('model_type')}, and there are no weights",
                where=where,
                cause=f"they are known of {', '.join(FAMILIES)}",
                fix="put the weights beside config.json",
            )
        dtype = _config_dtype(config) or "float32"
        code = next(code for code, name in DTYPES.items() if name == dtype)
        tensors, end = {}, 0
        for name, shape in _understood(parameters, config, where).items():
            begin, end = end, end + math.prod(shape) * WIDTHS[dtype]
            tensors[name] = TensorInfo(code, shape, "", begin, end)
        note = "there are no weights: shapes follow from the config alone"
        return cls(config, tensors, where, note=note, bare=True)

    @classmethod
    def known(cls, repo_id: str) -> Checkpoint | None:
        """A well-known hub model from the built-in table, without network and token; None if it is not in it."""
        config = known_config(repo_id)
        if config is None:
            return None
        found = cls.from_config(config, where=repo_id)
        note = f"shapes of {repo_id} come from the built-in table, its files were not looked at"
        return cls(config, found.tensors, repo_id, note=note)

    @classmethod
    def _checked(
        cls,
        config: Config,
        tensors: Mapping[str, TensorInfo],
        where: str,
        path: Path | None = None,
        note: str | None = None,
    ) -> Checkpoint:
        _check_plain(config, tensors, where)
        dims = _understood(Dims.of, config, where)
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        if missing := missing_tensors(config, dims, shapes):
            raise WeightsError(
                f"the checkpoint lacks {some(missing)}",
                where=where,
                cause="a shard or a part of the index is missing; loading would make up random weights",
                fix="fetch the checkpoint again",
            )
        if wrong := wrong_shapes(config, shapes):
            raise WeightsError(
                f"the tensors do not have the shapes that config.json says: {some(wrong)}",
                where=where,
                cause="config.json and weights are of different models",
                fix="fetch both again, from one revision",
            )
        if surplus := surplus_tensors(config, dims, shapes):
            raise WeightsError(
                f"the checkpoint has weights that the model would leave out: {some(surplus)}",
                where=where,
                cause="config.json is of another model: it counts fewer layers, or has no such biases",
                fix="fetch config.json and weights again, from one revision",
            )
        return cls(config, tensors, where, path, note)

    def check_weights(self) -> None:
        """Raises WeightsError for a config alone."""
        if self.bare:
            raise no_weights(Path(self.where))

    @property
    def dims(self) -> Dims:
        return Dims.of(self.config)

    @property
    def shapes(self) -> Shapes:
        """The model's parameters, without a head that is the embedding, rotary tables, draft layers and
        the like. For known families these are the names of the model, else those of the files."""
        if family(self.config) is not None:
            return parameters(self.config)
        prefix, layers = layer_prefix(self.tensors, self.dims.layers), self.dims.layers
        tied = is_tied(self.config, default=False)
        return {
            name: tensor.shape
            for name, tensor in self.tensors.items()
            if not BUFFER.search(name)
            and not (tied and HEAD.search(name.rpartition(".")[0]))
            and not (prefix and _beyond(name, prefix, layers))
        }

    @cached_property
    def file_bytes(self) -> int:
        """Of all tensors as they lie in the files."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def is_plain(self, dtype: str) -> bool:
        """Whether a model in ``dtype`` has the weights as they are in the files, none of them cast or put together."""
        return all(
            DTYPES.get(tensor.dtype) == dtype and not EXPERT.search(name)
            for name, tensor in self.tensors.items()
        )

    @cached_property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())

    def outline(self, width: int, part: Part = lambda _, shape: shape) -> Outline:
        """The tree of modules that placement cuts, ``width`` bytes per element, of each tensor the ``part``
        that is held. Raises WeightsError."""
        return _understood(
            lambda config: outline(config, self.shapes, width, part), self.config, self.where
        )

    def dtype(self, asked: str = "auto") -> str:
        """float32, bfloat16 or float16: as asked, else as the config says, else as most weights are."""
        _check_plain(self.config, self.tensors, self.where)
        if asked != "auto":
            return asked
        named = _config_dtype(self.config)
        if named:
            return named
        held: Counter[str] = Counter()
        for tensor in self.tensors.values():
            held[DTYPES.get(tensor.dtype, "float32")] += tensor.numel
        return held.most_common(1)[0][0] if held else "float32"


def _check_plain(config: Config, tensors: Mapping[str, TensorInfo], where: str) -> None:
    if sign := why_quantized(config, tensors):
        raise WeightsError(
            f"the checkpoint is quantized, which this version can't load ({sign})",
            where=where,
            fix="give model.path the unquantized model",
        )


def _config_dtype(config: Config) -> str | None:
    for place in (config, text_config(config)):
        for key in ("dtype", "torch_dtype"):
            name = str(place.get(key)).removeprefix("torch.")
            if name in WIDTHS:
                return name
    return None


def _understood(function: Callable[[Config], Found], config: Config, where: str) -> Found:
    try:
        return function(config)
    except (ValueError, TypeError, LookupError) as error:
        raise WeightsError(f"config.json makes no sense here: {error}", where=where) from None


def _beyond(name: str, prefix: str, layers: int) -> bool:
    number = name[len(prefix) :].partition(".")[0] if name.startswith(prefix) else ""
    return number.isdigit() and int(number) >= layers
