"""How fast a folder's storage is read, and what memory holds of it."""

from __future__ import annotations

import os
import time
from io import FileIO
from pathlib import Path

SIZE = 256 << 20
BLOCK = 8 << 20


def read_rates(folder: Path, size: int = SIZE) -> tuple[float, float, float]:
    """Bytes per second of a new file that is written to ``folder``, dropped from memory, and read from its storage;
    and of the same file, now that memory holds it, read again by one thread, and mapped and let go.

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
            target = memoryview(bytearray(size))
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            disk = _rate(file, target)
            cached = max(_rate(file, target) for _ in range(3))
            return disk, cached, max(_mapped_rate(file, size) for _ in range(3))
    finally:
        path.unlink(missing_ok=True)


def _rate(file: FileIO, target: memoryview) -> float:
    """Of one pass over the file, each part of it to a place of its own: what a cache holds is overwritten faster."""
    read = 0
    file.seek(0)
    began = time.perf_counter()
    while got := file.readinto(target[read : read + BLOCK]):
        read += got
    return read / (time.perf_counter() - began)


def _mapped_rate(file: FileIO, size: int) -> float:
    """Of the file's parts one after the other, as a model that is streamed has its layers."""
    from launcher.model.mapped import MappedFile

    mapped = MappedFile(file.fileno(), size)
    began = time.perf_counter()
    for begin in range(0, size, BLOCK):
        mapped.bring(begin, begin + BLOCK)
        mapped.leave(begin, begin + BLOCK)
    return size / (time.perf_counter() - began)
