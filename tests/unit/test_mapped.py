"""MappedFile: bytes where the page cache has them, brought and left."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from launcher.model.mapped import PAGE, MappedFile

SIZE = 8 << 20


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[tuple[int, bytes]]:
    content = os.urandom(SIZE)
    (tmp_path / "file").write_bytes(content)
    fd = os.open(tmp_path / "file", os.O_RDWR)
    yield fd, content
    os.close(fd)


def mapped_bytes() -> int:
    """Pages of files that count as this process's memory."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.findall(r"RssFile:\s*(\d+)", status)[0])


def test_views_show_the_file(opened: tuple[int, bytes]) -> None:
    fd, content = opened
    file = MappedFile(fd, SIZE)
    for begin, end in ((0, SIZE), (5, 77), (PAGE - 1, 2 * PAGE + 1), (SIZE - 3, SIZE)):
        file.bring(begin, end)
        assert bytes(file.view(begin, end).numpy()) == content[begin:end]
        file.leave(begin, end)
        assert bytes(file.view(begin, end).numpy()) == content[begin:end], "fetched again"


def test_only_what_was_brought_counts_as_memory(opened: tuple[int, bytes]) -> None:
    file = MappedFile(opened[0], SIZE)
    before = mapped_bytes()
    file.bring(100, SIZE - 100)
    assert mapped_bytes() - before > SIZE // 2
    file.leave(100, SIZE - 100)
    assert mapped_bytes() - before < SIZE // 8


def huge_bytes() -> int:
    """Of files' huge pages that this process sees as such."""
    found = re.findall(r"FilePmdMapped:\s*(\d+)", Path("/proc/self/smaps").read_text())
    return 1024 * sum(map(int, found))


def test_what_was_just_written_is_renewed_where_the_system_has_huge_pages(
    opened: tuple[int, bytes],
) -> None:
    fd, content = opened
    file, before = MappedFile(fd, SIZE), huge_bytes()
    quick = file.is_quick(0, SIZE)
    renewed = file.renew(0, SIZE)
    file.bring(0, SIZE)
    assert bytes(file.view(0, SIZE).numpy()) == content
    assert quick or renewed or huge_bytes() == before, "huge pages, and nothing was gained"


@pytest.mark.parametrize("left", [0, SIZE // 2])
def test_a_file_that_was_cut_short_raises(opened: tuple[int, bytes], left: int) -> None:
    """A look at its pages would end the process."""
    fd, content = opened
    file = MappedFile(fd, SIZE)
    os.ftruncate(fd, left)
    for look in (file.bring, file.is_quick, file.renew):
        with pytest.raises(OSError, match=r"Bad address|Cannot allocate|Input/output"):
            look(SIZE // 4, SIZE)
    if left:
        file.bring(0, left)
        assert bytes(file.view(0, left).numpy()) == content[:left]


def test_tensors_of_it_outlive_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(64)))
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    view = MappedFile(fd, 64).view(8, 16)
    os.close(fd)
    (tmp_path / "file").unlink()
    assert torch.equal(view, torch.arange(8, 16, dtype=torch.uint8))


def test_what_can_not_be_mapped(tmp_path: Path) -> None:
    read, write = os.pipe()
    with pytest.raises(OSError):
        MappedFile(read, 64)
    os.close(read)
    os.close(write)
