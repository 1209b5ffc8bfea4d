"""What benchmarks ask of the system about this process, and about files that are to be read from the disk."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def resident(field: str = "VmHWM") -> int:
    """Bytes of this process's resident memory: the most so far, or with VmRSS what it is now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def drop(files: Iterable[Path]) -> None:
    """Take the files out of the page cache."""
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
