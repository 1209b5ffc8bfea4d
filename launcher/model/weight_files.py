"""WeightFiles: byte ranges of a checkpoint's safetensors files, read straight into memory of ours."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch

from launcher.errors import WeightsError
from launcher.model.exclusive import only_one
from launcher.model.mapped import HUGE, MappedFile
from launcher.model.recipe import Recipe, Source
from launcher.plan.headers import TensorInfo

CHUNK = (
    16 << 20
)  # bytes of one read: few enough that closing does not wait, many enough for a disk's full rate
SETTLED = (
    16 << 20
)  # bytes that are mapped at once when pages are renewed: little beside what a process takes anyway


@dataclass(frozen=True)
class Range:
    """Bytes of a file, counted from behind its header."""

    file: str
    begin: int
    end: int


class WeightFiles:
    """The files of ``folder``, opened once, so that one that is deleted under way is still whole here.

    ``keep`` False lets the page cache go behind each read: a model larger than memory is never found there
    again, and would only push out what others use. ``ahead`` False has the system read no more than is asked for:
    what follows is another rank's. ``bytes_read`` and ``seconds`` count what was read.
    """

    def __init__(
        self, folder: Path, files: Iterable[str], keep: bool = True, ahead: bool = True
    ) -> None:
        self.bytes_read, self.seconds = 0, 0.0
        self._keep, self._folder = keep, folder
        self._lock = threading.Lock()
        self._files = {name: _File(folder / name, ahead) for name in sorted(set(files))}

    def fill(self, recipe: Recipe, target: torch.Tensor, first: int = 0) -> None:
        """Put the parameter of ``recipe`` into ``target``, elements of its dtype on the CPU: all of it, or as many
        as there is room for from element ``first`` on.

        Raises WeightsError naming the file that can't be read, is cut short or has changed.
        """
        for source in recipe.sources:
            begin = max(first, source.at)
            end = min(first + len(target), source.at + source.tensor.numel)
            if begin < end:
                self._fill(source, begin - source.at, target[begin - first : end - first])

    def load(self, recipe: Recipe, device: torch.device) -> torch.Tensor:
        """The parameter of ``recipe`` on ``device``. Raises what ``fill`` does."""
        value = torch.empty(recipe.numel, dtype=recipe.dtype)
        self.fill(recipe, value)
        return value.view(recipe.shape).to(device)

    def in_place(self, recipe: Recipe) -> torch.Tensor | None:
        """The parameter of ``recipe`` where its file's pages are, to be looked at between ``bring`` and ``leave``; None
        where it has to be put together or read."""
        if len(recipe.sources) != 1 or recipe.sources[0].dtype != recipe.dtype or not self._keep:
            return None
        tensor = recipe.sources[0].tensor
        value = self._files[tensor.file].view(tensor)
        if value is None or value.data_ptr() % recipe.dtype.itemsize:
            return None
        return value.view(recipe.dtype).view(recipe.shape)

    def settle(self, places: Iterable[Range]) -> None:
        """Have the page cache hold these bytes in pages that come and go quickly: files have small ones when they were
        just written, or read in other ways. Raises WeightsError."""
        with only_one(
            f"settle {self._folder}"
        ):  # pages that another process looks at can't be dropped
            for name, file in self._files.items():
                if not file.settle([place for place in places if place.file == name]):
                    return  # here pages are what they are

    def expect(self, place: Range) -> None:
        """These bytes will be brought soon. Raises WeightsError."""
        self._files[place.file].advise("expect", place)

    def bring(self, place: Range) -> None:
        """Have these bytes in memory. Raises WeightsError, also if the file is no longer what it was: whoever looks at
        a page that is gone is killed."""
        began = time.perf_counter()
        self._files[place.file].advise("bring", place)
        self._files[place.file].check()
        self._count(place.end - place.begin, began)

    def leave(self, place: Range) -> None:
        """These bytes are not needed for now."""
        self._files[place.file].advise("leave", place)

    def rows(self, source: Source, rows: list[int], width: int) -> torch.Tensor:
        """Rows of ``width`` elements of a tensor, in its own dtype: (len(rows), width)."""
        found = torch.empty(len(rows), width, dtype=source.dtype)
        size = width * source.dtype.itemsize
        for place, row in enumerate(rows):
            self.read(source.tensor, row * size, found[place])
        return found

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _fill(self, source: Source, first: int, target: torch.Tensor) -> None:
        """``target`` with the elements of ``source`` from ``first`` on."""
        size = source.dtype.itemsize
        if source.dtype == target.dtype:
            self.read(source.tensor, first * size, target)
            return
        scratch = torch.empty(min(CHUNK // size, len(target)), dtype=source.dtype)
        for begin in range(0, len(target), len(scratch)):
            part = target[begin : begin + len(scratch)]
            self.read(source.tensor, (first + begin) * size, scratch[: len(part)])
            part.copy_(scratch[: len(part)])

    def read(self, tensor: TensorInfo, offset: int, target: torch.Tensor) -> None:
        """The bytes of ``tensor`` from byte ``offset`` on, as they are."""
        began = time.perf_counter()
        view = target.view(torch.uint8).numpy().data
        self._files[tensor.file].read(view, tensor.begin + offset, self._keep)
        self._count(len(view), began)

    def _count(self, size: int, began: float) -> None:
        with self._lock:
            self.bytes_read += size
            self.seconds += time.perf_counter() - began


class _File:
    """One file; its offsets are counted from behind its header."""

    def __init__(self, path: Path, ahead: bool) -> None:
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if not ahead:
                os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)
            self._base = 8 + int(struct.unpack("<Q", os.pread(self._fd, 8, 0))[0])
            self._made = self._stamp()
        except (OSError, struct.error) as error:
            raise self._lost(str(error)) from error

    def read(self, view: memoryview, offset: int, keep: bool) -> None:
        begin = place = self._base + offset
        end = begin + len(view)
        try:
            while place < end:
                part = view[place - begin : place - begin + CHUNK]
                count = os.preadv(self._fd, [part], place)
                if not count:
                    raise self._lost(f"it ends at byte {place:,}")
                if not keep:
                    os.posix_fadvise(self._fd, place, count, os.POSIX_FADV_DONTNEED)
                place += count
        except OSError as error:
            raise self._lost(error.strerror or str(error)) from error
        self.check()

    def view(self, tensor: TensorInfo) -> torch.Tensor | None:
        """The bytes of ``tensor``, None where files can't be mapped."""
        if self._mapped is None:
            return None
        return self._mapped.view(self._base + tensor.begin, self._base + tensor.end)

    def advise(self, what: Literal["expect", "bring", "leave"], place: Range) -> None:
        try:
            getattr(self._mapped, what)(self._base + place.begin, self._base + place.end)
        except OSError as error:
            self.check()
            raise self._lost(error.strerror or str(error)) from error

    def settle(self, places: Iterable[Range]) -> bool:
        """False where the first attempt to get larger pages was in vain."""
        if self._mapped is None:
            return False
        steps = _steps((self._base + place.begin, self._base + place.end) for place in places)
        try:
            return self._mapped.settle(steps)
        except OSError as error:
            self.check()
            raise self._lost(error.strerror or str(error)) from error

    @cached_property
    def _mapped(self) -> MappedFile | None:
        try:
            return MappedFile(self._fd, self._made[0])
        except (
            OSError
        ):  # an old kernel, a file system that can't, a limit on addresses: they are read
            return None

    def check(self) -> None:
        found = self._stamp()
        if found[0] < self._made[0]:
            raise self._lost(f"it ends at byte {found[0]:,}")
        if found != self._made:
            raise self._lost("it was changed")

    def close(self) -> None:
        os.close(self._fd)

    def _stamp(self) -> tuple[int, int]:
        found = os.fstat(self._fd)
        return found.st_size, found.st_mtime_ns

    def _lost(self, why: str) -> WeightsError:
        return WeightsError(
            f"weights can't be read any more: {why}",
            where=str(self._path),
            cause="the file was overwritten or cut short while the run read from it, or its disk fails",
            fix="put the checkpoint back as it was, then launcher resume",
        )


def _steps(places: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Begin and end of parts of a file, none of it twice, that cover its ``places`` as far as huge pages do."""
    done = 0
    for first, last in sorted(places):
        for begin in range(max(done, first // HUGE * HUGE), last // HUGE * HUGE, SETTLED):
            done = min(begin + SETTLED, last // HUGE * HUGE)
            yield begin, done
