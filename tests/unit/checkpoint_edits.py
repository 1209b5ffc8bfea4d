"""Checkpoints that are damaged in tests, and what is said of them."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
from models import make_model
from transformers import AutoModelForCausalLM

from launcher.errors import WeightsError
from launcher.plan.checkpoint import Checkpoint


def refused(path: Path) -> str:
    """What is said about a broken checkpoint: what and where."""
    with pytest.raises(WeightsError) as caught:
        Checkpoint.read(path)
    return str(caught.value)


def sharded(path: Path) -> Path:
    """A small Llama in several shards."""
    make_model(path, "llama")
    model = AutoModelForCausalLM.from_pretrained(path)
    (path / "model.safetensors").unlink()
    model.save_pretrained(path, max_shard_size="200KB")
    assert (path / "model.safetensors.index.json").exists()
    return path


def edit_index(path: Path, edit: Any) -> None:
    index = path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = edit(content["weight_map"])
    index.write_text(json.dumps(content))


def header_of(file: Path) -> tuple[dict[str, Any], bytes]:
    raw = file.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def write_header(file: Path, header: dict[str, Any], data: bytes) -> None:
    raw = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + data)


def add_tensor(file: Path, name: str, shape: list[int]) -> None:
    header, data = header_of(file)
    size = 4 * math.prod(shape)
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + size]}
    write_header(file, header | {name: entry}, data + bytes(size))


def drop_tensors(file: Path, part: str) -> None:
    """A whole and consistent file without the tensors whose names hold ``part``."""
    header, data = header_of(file)
    kept, end, packed = {}, 0, b""
    for name, entry in header.items():
        if name == "__metadata__" or part in name:
            continue
        begin, stop = entry["data_offsets"]
        packed += data[begin:stop]
        kept[name] = entry | {"data_offsets": [end, end + stop - begin]}
        end += stop - begin
    write_header(file, kept, packed)
