"""The files of a checkpoint's directory, as far as a plan reads them: its config, and the headers of its weights. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from launcher.errors import WeightsError
from launcher.plan.headers import MAX_HEADER_BYTES, TensorInfo, inside, parse_json, read_header

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
OTHERS = ("*.safetensors", INDEX, "*.h5", "*.msgpack", "*.gguf")


def has_weights(directory: Path) -> bool:
    """Whether anything there is or may be a model's weights, whole or not, readable or not."""
    return any(any(directory.glob(pattern)) for pattern in (*OTHERS, *PICKLES))


def read_tensors(directory: Path) -> dict[str, TensorInfo]:
    """What model.safetensors holds, or an index and its shards. Raises WeightsError, naming the file."""
    if (directory / SINGLE).is_symlink() or (directory / SINGLE).exists():
        return read_header(inside(directory, SINGLE, directory))
    if (directory / INDEX).is_symlink() or (directory / INDEX).exists():
        return _read_shards(directory)
    raise no_weights(directory)


def merge(tensors: dict[str, TensorInfo], more: Mapping[str, TensorInfo], where: str) -> None:
    """Add ``more`` to ``tensors``. Raises WeightsError for a name that both have."""
    if twice := sorted(tensors.keys() & more.keys()):
        first, second = tensors[twice[0]].file, more[twice[0]].file
        raise WeightsError(f"both {first} and {second} hold {twice[0]}", where=where)
    tensors.update(more)


def read_object(directory: Path, name: str) -> dict[str, Any]:
    """The JSON object in the file ``name``. Raises WeightsError."""
    path = inside(directory, name, directory)
    try:
        size = path.stat().st_size
        if size > MAX_HEADER_BYTES:
            raise WeightsError(f"{name} is {size:,} bytes long", where=str(path))
        value = parse_json(path.read_bytes(), path)
    except OSError as error:
        raise WeightsError(f"{name} can't be read: {error.strerror}", where=str(path)) from error
    if not isinstance(value, dict):
        raise WeightsError(f"{name} is not a JSON object", where=str(path))
    return value


def no_weights(directory: Path) -> WeightsError:
    """The error that a directory without safetensors is."""
    pickled = sorted(file.name for pattern in PICKLES for file in directory.glob(pattern))
    if pickled:
        return WeightsError(
            f"the weights are pickled ({some(pickled)}), which is refused: unpickling runs code",
            where=str(directory),
            fix="launcher convert makes safetensors of them, by a reader that runs no code",
        )
    return WeightsError(
        f"there are no weights: neither {SINGLE} nor {INDEX}",
        where=str(directory),
        cause="a download that stopped early, or another directory",
    )


def some(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


def _read_shards(directory: Path) -> dict[str, TensorInfo]:
    weight_map = read_object(directory, INDEX).get("weight_map")
    index = inside(directory, INDEX, directory)
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(
            "the checkpoint's index has no weight_map, which names the file of each tensor",
            where=str(index),
            cause="a download that stopped early, or a file that was edited",
            fix="fetch the checkpoint again",
        )
    held: dict[str, TensorInfo] = {}
    for shard in sorted({str(name) for name in weight_map.values()}):
        merge(held, read_header(inside(directory, shard, index)), str(index))
    for name, shard in weight_map.items():
        if name not in held or held[name].file != shard:
            raise WeightsError(
                f"the index says that {shard} holds {name}, but it does not",
                where=str(index),
                cause="index and shards are of different downloads",
                fix="fetch the checkpoint again",
            )
    # Like the loader, trust the index: what a shard holds beyond it is not loaded.
    return {name: held[name] for name in weight_map}
