"""Spill: the KV caches that find no room where the model computes, brought there layer by layer while they are
used. Under a model on the CPU they are in a file, under one on a GPU in the host's memory."""

from __future__ import annotations

import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from launcher.errors import LauncherError
from launcher.model.cache import SlotCache, SlotLayer
from launcher.plan.hardware import in_memory
from launcher.plan.sizes import gib

Name = tuple[int, int, int, str]  # block, group, layer, keys or values


class Spill(ABC):
    """Keeps the tensors of caches by name. ``held``: bytes of the model's memory that this takes for good."""

    held = 0

    @contextmanager
    def brought(self, block: int, group: int, cache: SlotCache) -> Iterator[None]:
        """The cache has its keys and values inside, and none outside."""
        layers = [layer for layer in cache.layers if isinstance(layer, SlotLayer)]
        for number, layer in enumerate(layers):
            layer.keys = self._load((block, group, number, "keys"))
            layer.values = self._load((block, group, number, "values"))
        yield
        for number, layer in enumerate(layers):
            if layer.keys is not None and layer.values is not None:
                self._save((block, group, number, "keys"), layer.keys, cache.max_length)
                self._save((block, group, number, "values"), layer.values, cache.max_length)
            layer.keys = layer.values = None

    @abstractmethod
    def close(self) -> None:
        """Forget everything."""

    @abstractmethod
    def _load(self, name: Name) -> torch.Tensor | None:
        """What was saved under ``name``, None if nothing was. Good until the next one of this kind is loaded."""

    @abstractmethod
    def _save(self, name: Name, tensor: torch.Tensor, max_length: int) -> None:
        """Keep ``tensor``, (rows, heads, positions, width); it may come again with up to ``max_length`` positions."""


class HostSpill(Spill):
    """In pinned memory of the host, for caches on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._kept: dict[Name, torch.Tensor] = {}

    def close(self) -> None:
        self._kept.clear()

    def _load(self, name: Name) -> torch.Tensor | None:
        kept = self._kept.get(name)
        return None if kept is None else kept.to(self._device, non_blocking=True)

    def _save(self, name: Name, tensor: torch.Tensor, max_length: int) -> None:
        kept = self._kept.get(name)
        if kept is None or kept.shape != tensor.shape:
            kept = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._kept[name] = kept
        # Copies of one stream are done in their order, so what is loaded next is what was saved.
        kept.copy_(tensor, non_blocking=True)


@dataclass
class _Region:
    """Where in the file a tensor is, and its form when it was saved last."""

    offset: int
    shape: torch.Size
    dtype: torch.dtype


class FileSpill(Spill):
    """In a file without a name in ``folder``: it is gone with this process, whatever ends that.

    A cache is read and written whole, by plain reads and writes: pages of a mapped file would count as this
    process's memory. Raises LauncherError where there is no room, and when the disk is full or fails.
    """

    def __init__(self, folder: str | None, size: int = 0) -> None:
        """``size``: bytes that it will hold."""
        self._folder = Path(folder or tempfile.gettempdir())
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise self._failed(error) from error
        if in_memory(self._folder):
            raise LauncherError(
                "the KV cache is to be kept on disk, and this folder is in memory",
                where=str(self._folder),
                cause="it is on a tmpfs, which counts as the job's memory",
                fix="set parallel.options.spill_dir to a folder on a disk of the node",
            )
        if (free := shutil.disk_usage(self._folder).free) < size:
            raise LauncherError(
                f"the KV cache takes {gib(size)} on disk, and {gib(free)} are free",
                where=str(self._folder),
                fix="make room there, set parallel.options.spill_dir to a folder on another disk, or fewer batch.groups",
            )
        self._regions: dict[Name, _Region] = {}
        self._end = 0
        self._buffers: dict[str, torch.Tensor] = {}

    def close(self) -> None:
        self._file.close()

    def _load(self, name: Name) -> torch.Tensor | None:
        region = self._regions.get(name)
        if region is None:
            return None
        size = region.shape.numel() * region.dtype.itemsize
        buffer = self._buffers.get(name[3])
        if buffer is None or len(buffer) < size:
            self._buffers[name[3]] = buffer = torch.empty(size, dtype=torch.uint8)
            self.held = sum(each.nbytes for each in self._buffers.values())
        self._move(os.preadv, buffer[:size], region.offset)
        return buffer[:size].view(region.dtype).view(region.shape)

    def _save(self, name: Name, tensor: torch.Tensor, max_length: int) -> None:
        rows, heads, _, width = tensor.shape
        region = self._regions.get(name)
        if region is None:
            region = _Region(self._end, tensor.shape, tensor.dtype)
            self._regions[name] = region
            self._end += rows * heads * max_length * width * tensor.itemsize
        region.shape = tensor.shape
        self._move(os.pwritev, tensor.view(-1).view(torch.uint8), region.offset)

    def _move(
        self, move: Callable[[int, list[memoryview], int], int], part: torch.Tensor, offset: int
    ) -> None:
        view, done = part.numpy().data, 0
        try:
            while done < len(view):
                count = move(self._file.fileno(), [view[done:]], offset + done)
                if not count:
                    raise OSError(0, "the file is shorter than what was written")
                done += count
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> LauncherError:
        return LauncherError(
            f"the KV cache can't be kept on disk: {error.strerror}",
            where=str(self._folder),
            cause="the disk is full or failing",
            fix="make room there, or set parallel.options.spill_dir to a folder on another disk; "
            "then launcher resume",
        )
