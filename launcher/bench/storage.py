"""How fast a folder's storage is read, and what memory holds of it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from io import FileIO
from pathlib import Path

SIZE = 256 << 20
BLOCK = 8 << 20


@contextmanager
def scratch_file(folder: Path, size: int = SIZE) -> Iterator[Path]:
    """A new file in ``folder``, to be measured with. Raises OSError."""
    path = folder / f".launcher-bench-{os.getpid()}"
    block = os.urandom(BLOCK)  # what compresses well would say nothing of weights
    try:
        with path.open("wb", buffering=0) as file:
            for _ in range(size // BLOCK):
                file.write(block)
            os.fsync(file.fileno())
        yield path
    finally:
        path.unlink(missing_ok=True)


def read_rates(path: Path) -> tuple[float, float]:
    """Bytes per second of a file that is dropped from memory and read from its storage; and of the same file, now that
    memory holds it, read again by one thread.

    Raises OSError. Network filesystems may still answer from their servers' memory, as they may in a run.
    """
    with path.open("rb", buffering=0) as file:
        target = memoryview(bytearray(path.stat().st_size))
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return _rate(file, target), max(_rate(file, target) for _ in range(3))


def mapped_rate(path: Path) -> float:
    """Bytes per second at which parts of a file that memory holds are mapped and let go one after the other, as a model
    that is streamed has its layers: what is mapped is looked at, too, which is not counted, but leaves nothing of the
    kernel's own in the processor's caches. Raises OSError, as where files can't be mapped so."""
    import torch

    from launcher.bench.clock import once
    from launcher.model.mapped import MappedFile

    with path.open("rb", buffering=0) as file:
        size, spent = path.stat().st_size, 0.0
        mapped = MappedFile(file.fileno(), size)
        for begin in range(0, size, BLOCK):
            part = begin, begin + BLOCK
            spent += once(partial(mapped.bring, *part))
            mapped.view(*part).view(torch.int64).sum()
            spent += once(partial(mapped.leave, *part))
        return size / spent


def settle(path: Path) -> None:
    """Have memory hold the file in pages as those of a model that is streamed. Raises OSError."""
    from launcher.model.mapped import MappedFile

    with path.open("rb", buffering=0) as file:
        size = path.stat().st_size
        steps = ((begin, begin + BLOCK) for begin in range(0, size, BLOCK))
        MappedFile(file.fileno(), size).settle(steps)


def _rate(file: FileIO, target: memoryview) -> float:
    """Of one pass over the file, each part of it to a place of its own: what a cache holds is overwritten faster."""
    read = 0
    file.seek(0)
    began = time.perf_counter()
    while got := file.readinto(target[read : read + BLOCK]):
        read += got
    return read / (time.perf_counter() - began)
