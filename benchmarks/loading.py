"""Loading one of two stages of a 1.1B llama in bf16 from a file that is not in memory, against a plain read of its bytes.

    python -m benchmarks.loading [--rounds 5] [--folder DIR]

``plain`` reads the stage's byte ranges in the order of the file into one buffer, with 16 MiB per read. Ratios are the medians over the
rounds of those within a round; "library" is from_pretrained of the same stage. ``memory`` is the growth of the
process's largest resident set over the stage's weights, ``bytes`` what was read from the disk over them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.process import drop, resident

LAYERS, TOTAL = (11, 21), 22
CHUNK = 16 << 20


def read_plainly(file: Path, ranges: list[tuple[int, int]]) -> float:
    """Seconds to read these ranges."""
    buffer = memoryview(bytearray(CHUNK))
    began = time.perf_counter()
    with file.open("rb", buffering=0) as opened:
        for begin, end in ranges:
            for place in range(begin, end, CHUNK):
                part = buffer[: min(CHUNK, end - place)]
                assert os.preadv(opened.fileno(), [part], place) == len(part)
    return time.perf_counter() - began


def child(how: str, folder: Path) -> None:
    """In a process of its own: load the stage, or read it; prints what it took."""
    import torch

    from launcher.job.spec import ModelSpec
    from launcher.model import stage
    from launcher.model.weights import load_model
    from launcher.plan.checkpoint import Checkpoint
    from launcher.runtime.generate import storage_bytes

    torch.set_num_threads(1)
    checkpoint, file = Checkpoint.read(folder), folder / "model.safetensors"
    own = [
        tensor
        for name, tensor in checkpoint.tensors.items()
        if any(f"layers.{n}." in name for n in range(LAYERS[0], LAYERS[1] + 1))
        or name.startswith(("lm_head", "model.norm"))
    ]
    base = 8 + int.from_bytes(file.open("rb").read(8), "little")
    ranges: list[tuple[int, int]] = []
    for tensor in sorted(own, key=lambda tensor: tensor.begin):
        size = tensor.numel * 2
        if ranges and ranges[-1][1] == base + tensor.begin:
            ranges[-1] = ranges[-1][0], base + tensor.begin + size
        else:
            ranges.append((base + tensor.begin, base + tensor.begin + size))
    weights = sum(end - begin for begin, end in ranges)
    if how == "library":
        stage.load = load_model
    drop([file])
    before, at_first = storage_bytes(), resident("VmRSS")
    began = time.perf_counter()
    if how == "plain":
        took = read_plainly(file, ranges)
    else:
        model = stage.load_stage(ModelSpec(path=str(folder)), "bfloat16", LAYERS, TOTAL)
        for parameter in model.parameters():  # mapped files are read when they are used
            parameter.view(torch.int16).view(-1)[::2048].sum()
        took = time.perf_counter() - began
    memory = resident() - at_first
    figures = [took, (storage_bytes() - before) / weights, memory / weights]
    print(json.dumps(figures), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the checkpoint is, or is to be")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.folder)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "model.safetensors").exists():
            from benchmarks.models import build

            build("1.1b").save_pretrained(folder, max_shard_size="100GB")
        found: dict[str, list[list[float]]] = {"plain": [], "direct": [], "library": []}
        for turn in range(options.rounds):
            for how, figures in found.items():
                command = [sys.executable, "-m", "benchmarks.loading", "--child", how]
                result = subprocess.run(
                    [*command, "--folder", str(folder)], capture_output=True, text=True, check=True
                )
                figures.append(json.loads(result.stdout.splitlines()[-1]))
                print(f"round {turn}: {how}: {figures[-1][0]:.2f} s", flush=True)
    for how, figures in found.items():
        rate = statistics.median(p[0] / f[0] for p, f in zip(found["plain"], figures, strict=True))
        read, memory = (statistics.median(f[place] for f in figures) for place in (1, 2))
        print(f"{how:8} rate / plain {rate:4.2f}   bytes {read:4.2f}   memory {memory:4.2f}")


if __name__ == "__main__":
    main()
