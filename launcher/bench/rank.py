"""One of the ranks that measure at the same time: `python -m launcher.bench.rank FOLDER RANK RANKS THREADS DEVICE DTYPES`.

It leaves what it measured in FOLDER/rank-RANK.json.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from launcher.disk import write_json
from launcher.runtime import process

JOIN = timedelta(seconds=120)


def main(
    folder: Path, rank: int, ranks: int, threads: int, kind: str, dtypes: Sequence[str]
) -> None:
    """Meet the other ranks, measure whenever they do, note. FOLDER/file is a file that is in memory."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(threads)
    device = torch.device("cuda", rank) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(backend, f"file://{folder}/meet", JOIN, ranks, rank)
    dist.barrier()
    joined = time.time()
    loading = _loading_s(folder / "model") if rank == 0 else None
    dist.barrier()
    found = _measure(rank, ranks, threads, device, dtypes)
    dist.barrier()
    found["speed"]["mapped"] = _mapped(folder / "file", rank)
    write_json(folder / f"rank-{rank}.json", {"joined": joined, "loading_s": loading, **found})
    dist.barrier()
    dist.destroy_process_group()


def _mapped(file: Path, rank: int) -> float | None:
    """Bytes per second that each rank maps of a file that is in memory; None where it can't be mapped so."""
    import torch.distributed as dist

    from launcher.bench.storage import mapped_rate, settle

    with suppress(OSError):
        if rank == 0:  # pages that another rank looks at can't be renewed
            settle(file)
    dist.barrier()
    try:
        return max(mapped_rate(file) for _ in range(3))
    except OSError:
        return None


def _loading_s(folder: Path) -> float:
    """Seconds that loading a model takes beside reading it: importing its code, and making it."""
    began = time.perf_counter()
    from launcher.bench.layers import tiny_model
    from launcher.job.spec import ModelSpec
    from launcher.model import direct
    from launcher.model.weights import Loading

    tiny_model().save_pretrained(folder)
    direct.load(ModelSpec(path=str(folder)), Loading("float32"))
    return time.perf_counter() - began


def _measure(
    rank: int, ranks: int, threads: int, device: Any, dtypes: Sequence[str]
) -> dict[str, Any]:
    import torch
    import torch.distributed as dist

    from launcher.bench import exchange
    from launcher.bench.host import engine_step_s
    from launcher.bench.layers import beside_products
    from launcher.bench.products import matmul_rates, memory_rate

    process.keep_freed_memory()  # as ranks do
    costs = {}
    for name in dtypes:
        dtype = getattr(torch, name)
        dist.barrier()
        rates = matmul_rates(device, dtype)
        dist.barrier()
        unpacked = matmul_rates(device, dtype, packed=False) if device.type == "cpu" else {}
        dist.barrier()
        beside = asdict(beside_products(device, dtype, rates))
        costs[name] = {"matmul": rates, "unpacked": unpacked, **beside}
    dist.barrier()
    cpu = device.type == "cpu"
    speed = {
        "device": "cpu" if cpu else torch.cuda.get_device_name(device),
        "ranks": ranks,
        "threads": threads,
        "memory": memory_rate(device),
        "costs": costs,
    }
    dist.barrier()
    host = {"speed": speed, "step_s": engine_step_s()}
    dist.barrier()
    if ranks != 2:
        return host
    lines = {"link": exchange.link(rank, device), **exchange.exchanges(rank, ranks, device)}
    return {**host, **{name: line.model_dump() for name, line in lines.items()}}


if __name__ == "__main__":
    process.die_with_parent(os.getppid())
    folder, rank, ranks, threads, device, dtypes = sys.argv[1:]
    main(Path(folder), int(rank), int(ranks), int(threads), device, dtypes.split(","))
