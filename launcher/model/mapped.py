"""MappedFile: a file's bytes as tensors where the page cache has them, without a copy."""

from __future__ import annotations

import ctypes
import mmap
import os
import warnings

import torch

POPULATE_READ = 22  # MADV_POPULATE_READ of Linux 5.14, which Python has no name for
PAGE = mmap.PAGESIZE

# Python's own madvise keeps all other threads waiting while it is at it.
_madvise = ctypes.CDLL(None, use_errno=True).madvise
_madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class MappedFile:
    """``size`` bytes of the open file ``fd``. Raises OSError where they can't be mapped so.

    A page that was not brought is fetched when it is looked at, and if that fails, for a file that was cut short or
    a disk that does not answer, the process is killed. So ranges are brought first, which only raises.
    """

    def __init__(self, fd: int, size: int) -> None:
        with warnings.catch_warnings(action="ignore"):  # torch warns that nobody may write to them
            self._bytes = torch.frombuffer(
                mmap.mmap(fd, size, access=mmap.ACCESS_READ), dtype=torch.uint8
            )
        self._advise(0, 1, POPULATE_READ)

    def view(self, begin: int, end: int) -> torch.Tensor:
        """These bytes, uint8."""
        return self._bytes[begin:end]

    def expect(self, begin: int, end: int) -> None:
        """Have these bytes read into the page cache, if they are not there, while this goes on. Raises OSError."""
        self._advise(begin, end, mmap.MADV_WILLNEED)

    def bring(self, begin: int, end: int) -> None:
        """Have these bytes in memory when this returns. Raises OSError."""
        self._advise(begin, end, POPULATE_READ)

    def leave(self, begin: int, end: int) -> None:
        """Count these bytes no longer as memory of this process; the page cache still has them."""
        self._advise(begin, end, mmap.MADV_DONTNEED)

    def _advise(self, begin: int, end: int, advice: int) -> None:
        page = begin // PAGE * PAGE
        if _madvise(self._bytes.data_ptr() + page, end - page, advice):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
