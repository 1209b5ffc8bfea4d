"""A rank of the doctor's own little world: `python -m launcher.doctor.pair FOLDER` under `accelerate launch`.

All ranks add up ones and megabytes; the first one notes how that went in FOLDER/ranks.json.
"""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from pathlib import Path

from launcher import environ
from launcher.disk import write_json
from launcher.runtime import process

JOIN_S = 60
FLOATS = 4 << 20
ROUNDS = 5


def main(folder: Path) -> None:
    """Join, add, measure, note."""
    import torch
    import torch.distributed as dist

    env = environ.rank()
    cuda = torch.cuda.is_available()
    backend, device = ("nccl", f"cuda:{env.local_rank}") if cuda else ("gloo", "cpu")
    if cuda:
        torch.cuda.set_device(env.local_rank)
    torch.set_num_threads(1)
    dist.init_process_group(backend, timeout=timedelta(seconds=JOIN_S))
    ones = torch.ones(FLOATS, device=device)
    dist.all_reduce(ones)
    right = bool((ones == env.world_size).all())
    began = time.perf_counter()
    for _ in range(ROUNDS):
        dist.all_reduce(ones.fill_(1))
    right = right and ones[0].item() == env.world_size  # waits for the device, too
    rate = ROUNDS * ones.nbytes / (time.perf_counter() - began)
    if env.rank == 0:
        told = {"ranks": env.world_size, "backend": backend, "right": right, "bytes_per_s": rate}
        write_json(folder / "ranks.json", told)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    process.die_with_parent()
    main(Path(sys.argv[1]))
