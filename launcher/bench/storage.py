"""How fast a folder's storage is read, past the page cache."""

from __future__ import annotations

import os
import time
from pathlib import Path

SIZE = 256 << 20
BLOCK = 8 << 20


def read_rate(folder: Path, size: int = SIZE) -> float:
    """Bytes per second of a new file that is written to ``folder``, dropped from memory, and read from its storage.

    Raises OSError. Network filesystems may still answer from their servers' memory, as they may in a run.
    """
    path = folder / f".launcher-bench-{os.getpid()}"
    block = os.urandom(BLOCK)  # what compresses well would say nothing of weights
    try:
        with path.open("wb", buffering=0) as file:
            for _ in range(size // BLOCK):
                file.write(block)
            os.fsync(file.fileno())
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            target = bytearray(BLOCK)
            began = time.perf_counter()
            read = 0
            while got := file.readinto(target):
                read += got
            return read / (time.perf_counter() - began)
    finally:
        path.unlink(missing_ok=True)
