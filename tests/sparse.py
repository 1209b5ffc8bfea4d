"""Checkpoints that take no disk: real headers and shapes, and weights that are holes in their files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.plan.checkpoint import Checkpoint

SHARD_LAYERS = 6


def sparse_checkpoint(folder: Path, config: Mapping[str, Any]) -> Path:
    """A checkpoint of ``config`` in shards of a few layers; every weight reads as zero."""
    folder.mkdir(parents=True, exist_ok=True)
    shards: dict[str, dict[str, Any]] = {}
    weight_map = {}
    for name, tensor in Checkpoint.from_config(config).tensors.items():
        parts = name.split(".")
        number = int(parts[2]) // SHARD_LAYERS + 1 if parts[1:2] == ["layers"] else 0
        weight_map[name] = f"model-{number:05d}.safetensors"
        header = shards.setdefault(weight_map[name], {})
        begin = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        header[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [begin, begin + tensor.nbytes],
        }
    for shard, header in shards.items():
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / shard).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + max(e["data_offsets"][1] for e in header.values()))
    (folder / "config.json").write_text(json.dumps(dict(config)))
    size = sum(max(e["data_offsets"][1] for e in header.values()) for header in shards.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
