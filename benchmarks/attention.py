"""Attention of decode steps as the engine does it against transformers' sdpa, as ratios of CPU time in one run.

    python -m benchmarks.attention [--rows 16] [--threads 1]

32 query heads on 4 KV heads of width 64, a row of the cache for each sequence.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from launcher.model.attention import Piece, Pieces, attend_in_pieces

HEADS, KV_HEADS, WIDTH, CAPACITY = 32, 4, 64, 512


def seconds(action: Callable[[], object], times: int = 30) -> float:
    """CPU time of one call, the best of a few series: other processes disturb it least."""
    action()
    found = []
    for _ in range(6):
        began = time.process_time()
        for _ in range(times):
            action()
        found.append((time.process_time() - began) / times)
    return min(found)


def ratio(dtype: torch.dtype, rows: int, length: int) -> float:
    """Time of transformers' sdpa over that of attend_in_pieces, one query of each of ``rows``."""
    module = torch.nn.Module()
    module.num_key_value_groups = HEADS // KV_HEADS
    scale = WIDTH**-0.5
    query = torch.randn(1, HEADS, rows, WIDTH, dtype=dtype)
    stored = torch.randn(2, rows, KV_HEADS, CAPACITY, WIDTH, dtype=dtype)
    flat = torch.zeros(1, 1, 1, rows * length, dtype=dtype)
    piece = Piece(slice(0, rows), slice(0, rows), length, slice(0, rows * length))
    pieces = Pieces([piece], rows * length)
    apart, cut = query[0].transpose(0, 1)[:, :, None], stored[:, :, :, :length]
    mask = flat.view(rows, 1, 1, length)
    with torch.inference_mode():
        mine = seconds(
            lambda: attend_in_pieces(module, query, *stored, flat, pieces, scaling=scale)
        )
        theirs = seconds(lambda: sdpa_attention_forward(module, apart, *cut, mask, scaling=scale))
    return theirs / mine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for dtype in (torch.float32, torch.bfloat16):
        for length in (64, 192, 320):
            found = ratio(dtype, options.rows, length)
            print(f"{dtype}, {length} positions: sdpa / engine {found:5.2f}", flush=True)


if __name__ == "__main__":
    main()
