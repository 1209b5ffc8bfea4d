"""Pickled weights made into safetensors, once, for whoever asks for it. The reader is torch's own for weights alone: it
knows tensors and plain containers, and refuses whatever would run code."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from launcher.errors import UsageError, WeightsError
from launcher.plan.checkpoint import Checkpoint
from launcher.plan.headers import inside, parse_json

SINGLE, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
SMALL = {".json", ".txt", ".model", ".jinja", ".tiktoken"}


def convert(source: Path, target: Path, say: Callable[[str], None]) -> Checkpoint:
    """The model of ``source`` at ``target``, with its config and tokenizer; nothing is there unless all of it is right.

    Raises UsageError where there is nothing to convert or no room for it, WeightsError for files that hold anything but
    the weights of a whole model.
    """
    if target.exists():
        raise UsageError("there is something already", where=str(target), fix="name another folder")
    files = _files(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        made = Path(folder) / "model"
        made.mkdir()
        placed: dict[str, str] = {}
        for number, name in enumerate(files, 1):
            say(f"converting {name}, {number} of {len(files)}")
            shard = f"model-{number:05d}-of-{len(files):05d}.safetensors"
            tensors = _tensors(inside(source, name, source))
            _save(tensors, made / shard)
            placed |= dict.fromkeys(tensors, shard)
        (made / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
        for path in source.iterdir():
            if path.suffix in SMALL and path.name != INDEX and path.is_file():
                shutil.copy(inside(source, path.name, source), made / path.name)
        Checkpoint.read(made)
        made.rename(target)
    return Checkpoint.read(target)


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise UsageError(
            f"not written: {error}",
            where=str(path.parents[2]),
            fix="make room there, or name another folder",
        ) from error


def _files(source: Path) -> list[str]:
    if (source / INDEX).exists():
        index: Any = parse_json(inside(source, INDEX, source).read_bytes(), source / INDEX)
        named = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(named, dict) or not named:
            raise WeightsError("the index has no weight_map", where=str(source / INDEX))
        return sorted({str(name) for name in named.values()})
    if (source / SINGLE).exists():
        return [SINGLE]
    raise UsageError(
        f"there are no pickled weights: neither {SINGLE} nor {INDEX}",
        where=str(source),
        fix="name the folder that they are in",
    )


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile file may raise anything
        raise WeightsError(
            f"not read: {type(error).__name__}: {str(error).partition('. ')[0][:200]}",
            where=str(path),
            cause="the file is damaged, or it holds more than weights, which could run code",
        ) from error
    if not isinstance(found, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in found.items()
    ):
        raise WeightsError("it holds something else than tensors by their names", where=str(path))
    # Tied weights share memory, which a safetensors file can't say.
    return {key: value.clone().contiguous() for key, value in found.items()}
