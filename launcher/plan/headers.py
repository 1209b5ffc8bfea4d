"""Safetensors headers: which tensors a file holds and where, checked before anything trusts them. No torch."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import WeightsError

DTYPE_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E5M2", "F8_E4M3", "F8_E5M2FNUZ", "F8_E4M3FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
MAX_HEADER_BYTES = 100_000_000  # the limit of the format's own readers
MAX_NAME = 512
MAX_DIMS = 64  # torch's own limit; the product of thousands of numbers would take minutes


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file; ``begin`` and ``end`` are byte offsets behind the file's header."""

    dtype: str
    shape: tuple[int, ...]
    file: str
    begin: int
    end: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file, in the order of their bytes.

    Raises WeightsError, naming the file, for a header that is malformed and for a file that is
    shorter or longer than its header says.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise _broken(
                    path,
                    f"its header would be {length:,} bytes long, the file is {size:,}",
                    cause="a copy or download that stopped early, or not a safetensors file",
                )
            raw = file.read(length)
    except OSError as error:
        raise _broken(path, f"can't be read: {error.strerror}") from error
    return check_header(parse_json(raw, path), path, data_bytes=size - 8 - length)


def check_header(
    header: Any, path: Path | str, data_bytes: int | None = None
) -> dict[str, TensorInfo]:
    """``header`` (the JSON object of a safetensors file) as tensors that lie side by side from byte 0.

    ``data_bytes`` is what the file holds behind the header, None where that is not known.
    Raises WeightsError naming ``path``.
    """
    if not isinstance(header, dict):
        raise _broken(path, "its header is not a JSON object")
    name = Path(path).name
    tensors = [
        (key, _tensor(key, entry, path, name))
        for key, entry in header.items()
        if key != "__metadata__"
    ]
    tensors.sort(key=lambda item: (item[1].begin, item[1].end))
    end = 0
    for key, tensor in tensors:
        if tensor.begin != end:
            raise _broken(path, f"tensor {key} starts at byte {tensor.begin:,}, not at {end:,}")
        end = tensor.end
    if data_bytes is not None and end > data_bytes:
        raise _broken(
            path,
            f"is truncated: it holds {data_bytes:,} bytes of weights, its header names {end:,}",
            cause="a copy or download that stopped early, or a full disk",
        )
    if data_bytes is not None and end < data_bytes:
        raise _broken(path, f"has {data_bytes - end:,} bytes behind its last tensor")
    return dict(tensors)


def parse_json(raw: bytes, path: Path | str) -> Any:
    """JSON in which a repeated key is an error. Raises WeightsError naming ``path``."""
    try:
        return json.loads(raw, object_pairs_hook=_no_repeats)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise _broken(path, f"holds malformed JSON: {reason}") from None


def inside(directory: Path, name: str, source: Path) -> Path:
    """The file ``name`` of a checkpoint; ``source`` is the file that names it.

    Raises WeightsError if the name or a link leads out of ``directory``. Links of a hub cache, from
    ``snapshots/<commit>`` into ``blobs`` of the same model, are as good as inside.
    """
    plain = name == Path(name).name and not {"\\", "\0"} & set(name) and len(name.encode()) < 256
    if not plain or name in ("", ".", ".."):
        raise _broken(
            source,
            f"names the file {name[:80]!r}, which is not in its own directory",
            cause="a checkpoint made to read other files of this machine",
        )
    home = directory.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    path = home / name
    real = Path(os.path.realpath(path))  # unlike resolve(), it takes a link to itself in its stride
    if not any(real.is_relative_to(place) for place in allowed):
        raise _broken(
            path,
            f"is a link out of the checkpoint, to {real}",
            fix="put the file itself there, or let model.path name the real directory",
        )
    if not real.is_file():
        raise _broken(
            path, "is missing" + ("" if source == directory else f", but {source.name} names it")
        )
    return path


def _tensor(key: str, entry: Any, path: Path | str, name: str) -> TensorInfo:
    if not isinstance(entry, dict) or len(key) > MAX_NAME:
        raise _broken(path, f"tensor {key[:80]} has no description, or too long a name")
    dtype = entry.get("dtype")
    shape, offsets = _counts(entry.get("shape")), _counts(entry.get("data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _broken(path, f"tensor {key} has the unknown dtype {str(dtype)[:40]!r}")
    if shape is None or offsets is None or len(offsets) != 2 or len(shape) > MAX_DIMS:
        raise _broken(path, f"tensor {key} has a malformed shape or data_offsets")
    tensor = TensorInfo(dtype, shape, name, *offsets)
    if tensor.numel * DTYPE_BITS[dtype] != tensor.nbytes * 8:
        raise _broken(
            path,
            f"tensor {key} of shape {list(shape)} in {dtype} can't take {tensor.nbytes:,} bytes",
        )
    return tensor


def _counts(value: Any) -> tuple[int, ...] | None:
    whole = isinstance(value, list) and all(
        type(item) is int and 0 <= item < 2**63 for item in value
    )
    return tuple(value) if whole else None


def _no_repeats(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {key[:80]!r} is there twice")
        result[key] = value
    return result


def _broken(
    path: Path | str, what: str, *, cause: str | None = None, fix: str | None = None
) -> WeightsError:
    return WeightsError(
        f"the checkpoint is broken: {Path(path).name} {what}",
        where=str(path),
        cause=cause,
        fix=fix or "fetch the checkpoint again",
    )
