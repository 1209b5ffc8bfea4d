"""MappedFile: a file's bytes as tensors where the page cache has them, without a copy."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import time
import warnings
from collections.abc import Iterable

import torch

POPULATE_READ = 22  # MADV_POPULATE_READ of Linux 5.14, which Python has no name for
PAGE = mmap.PAGESIZE
HUGE = 2 << 20  # bytes of a huge page, where pages have 4 KiB
HUGE_RATE = 200e9  # bytes per second at which they come and go at least; pages of 4 KiB do at 10e9, larger ones at 100e9

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
        with contextlib.suppress(OSError):  # a kernel without: pages are smaller than they could be
            self._advise(0, size, mmap.MADV_HUGEPAGE)
        self._fd = fd

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

    def is_quick(self, begin: int, end: int) -> bool:
        """Whether these bytes, which are brought first, come and go as huge pages do. Raises OSError."""
        return end - begin > self._pass_s(begin, end) * HUGE_RATE

    def renew(self, begin: int, end: int) -> bool:
        """Drop these bytes from the page cache and bring them anew, in huge pages if the kernel and the file system have
        them; ``fd`` is still open. False where that was in vain. Raises OSError."""
        before = self._pass_s(begin, end)
        try:
            os.fsync(self._fd)  # what is not on the disk yet can't be dropped
            os.posix_fadvise(self._fd, begin, end - begin, os.POSIX_FADV_DONTNEED)
        except OSError:  # a file system that has no such thing
            return False
        return self._pass_s(begin, end) < before / 2

    def settle(self, steps: Iterable[tuple[int, int]]) -> bool:
        """Renew those of the ``steps`` (begin, end) that are not quick; False where the first time that was in vain."""
        renewed = False
        for step in steps:
            if self.is_quick(*step):
                continue
            if self.renew(*step):
                renewed = True
            elif not renewed:
                return False
        return True

    def _pass_s(self, begin: int, end: int) -> float:
        """Seconds in which these bytes come and go, once they are there."""
        self.bring(begin, end)
        self.leave(begin, end)
        found = []
        for _ in range(3):
            began = time.perf_counter()
            self.bring(begin, end)
            self.leave(begin, end)
            found.append(time.perf_counter() - began)
        return min(found)

    def _advise(self, begin: int, end: int, advice: int) -> None:
        page = begin // PAGE * PAGE
        if _madvise(self._bytes.data_ptr() + page, end - page, advice):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
