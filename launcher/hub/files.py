"""Which files of a hub model make it up: a config, a tokenizer, and weights as safetensors only."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from launcher.errors import PreflightError, WeightsError

SINGLE, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
_SMALL_FILES = {".json", ".txt", ".model", ".jinja", ".tiktoken"}
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
_WEIGHTS = {".safetensors", ".h5", ".msgpack", ".gguf"} | _PICKLES


def is_complete(folder: Path) -> bool:
    """Whether every file that the weights consist of is there."""
    if not (folder / INDEX).is_file():
        return (folder / SINGLE).is_file()
    try:
        names = shards(json.loads((folder / INDEX).read_bytes()))
    except (ValueError, RecursionError):
        return False
    return all((folder / name).is_file() for name in names)


def is_small(file: str, with_code: bool) -> bool:
    """Config, tokenizer and templates, in the top folder; and code where the spec trusts it."""
    path = PurePosixPath(file)
    if path.suffix == ".py":
        return with_code
    top = path.parent.name in {"", "additional_chat_templates"}
    return top and path.suffix in _SMALL_FILES


def has_weights(files: list[str]) -> bool:
    """Whether any of them is or may be a model's weights, of a kind that can be loaded or not."""
    return INDEX in files or any(PurePosixPath(file).suffix in _WEIGHTS for file in files)


def weight_files(name: str, commit: str | None, files: list[str]) -> list[str]:
    """The safetensors files that the model consists of. Raises PreflightError if it has none."""
    if INDEX in files:
        index = small_json(name, INDEX, commit)
        try:
            names = shards(index)
        except ValueError as error:
            raise WeightsError(f"{INDEX} of {name} is malformed: {error}") from None
        missing = sorted(set(names) - set(files))
        if missing:
            raise WeightsError(
                f"{name} lacks {missing[0]!r}, which its index names", fix="choose another revision"
            )
        return names
    if SINGLE in files:
        return [SINGLE]
    pickled = any(PurePosixPath(file).suffix in _PICKLES for file in files)
    raise PreflightError(
        f"{name} has no {SINGLE}" + (", only pickled weights" if pickled else ""),
        where="model.path",
        cause="pickled weights run code when they are read, and are never loaded"
        if pickled
        else None,
        fix="choose a model or revision with safetensors weights, or fetch it and let `launcher convert` make them",
    )


def small_json(name: str, file: str, commit: str | None) -> dict[str, Any]:
    """A small JSON file of the hub. Raises WeightsError if it is not a JSON object."""
    from huggingface_hub import hf_hub_download

    try:
        value = json.loads(Path(hf_hub_download(name, file, revision=commit)).read_bytes())
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{file} of {name} is malformed: {error}") from None
    if not isinstance(value, dict):
        raise WeightsError(f"{file} of {name} is malformed: it is not a JSON object")
    return value


def shards(index: Any) -> list[str]:
    """File names of an index. Raises ValueError for an index that names anything else."""
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    named = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not named or any(not isinstance(n, str) or n != PurePosixPath(n).name for n in named):
        raise ValueError("its weight_map does not name files beside it")
    return sorted(set(named))
