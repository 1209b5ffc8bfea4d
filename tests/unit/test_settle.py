"""Settling: which bytes of a checkpoint's files are renewed in the page cache, and by one process at a time."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from jobs import wait_for
from safetensors.torch import save_file

from launcher.model import exclusive, mapped
from launcher.model.mapped import HUGE, MappedFile
from launcher.model.weight_files import SETTLED, Range, WeightFiles

FILES = ("a.safetensors", "b.safetensors")
SIZE = 3 * SETTLED


class Cache:
    """Stands in for the page cache: which steps are asked for, and which of those that are renewed get quick."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, in_vain: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        self.steps: list[tuple[int, int]] = []

        def renew(_: MappedFile, begin: int, end: int) -> bool:
            self.steps.append((begin, end))
            return len(self.steps) - 1 not in in_vain

        monkeypatch.setattr(mapped.MappedFile, "is_quick", lambda *_: False)
        monkeypatch.setattr(mapped.MappedFile, "renew", renew)


@pytest.fixture
def files(tmp_path: Path) -> WeightFiles:
    for name in FILES:
        save_file({"weight": torch.zeros(SIZE, dtype=torch.uint8)}, tmp_path / name)
    return WeightFiles(tmp_path, FILES)


def test_each_byte_is_settled_once_and_no_others(
    files: WeightFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(monkeypatch)
    files.settle([Range(FILES[1], SETTLED, SETTLED + 3 * HUGE), Range(FILES[1], 0, SETTLED)])
    assert cache.steps[0][0] == 0
    assert all(before[1] == after[0] for before, after in zip(cache.steps, cache.steps[1:]))  # noqa: B905
    assert all(begin % HUGE == end % HUGE == 0 for begin, end in cache.steps)
    assert SETTLED + 3 * HUGE - HUGE < cache.steps[-1][1] <= SETTLED + 3 * HUGE + 1024


@pytest.mark.parametrize(
    ("in_vain", "steps"), [({0}, 1), ({1}, 2 * 3), (set(), 2 * 3)], ids=["first", "later", "none"]
)
def test_it_stops_where_the_first_step_is_in_vain(
    in_vain: set[int], steps: int, files: WeightFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(monkeypatch, in_vain)
    files.settle([Range(name, 0, SIZE) for name in FILES])
    assert len(cache.steps) == steps


def test_a_file_system_that_can_not_sync_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int) -> None:
        raise OSError(22, "Invalid argument")

    (tmp_path / "file").write_bytes(bytes(HUGE))
    with (tmp_path / "file").open("rb") as file:
        monkeypatch.setattr(mapped.os, "fsync", refuse)
        assert not MappedFile(file.fileno(), HUGE).renew(0, HUGE)


def test_turns_are_taken_and_end_with_their_process(tmp_path: Path) -> None:
    script = "import sys; from launcher.model.exclusive import only_one\nwith only_one(sys.argv[1]): print(); input()"
    what = f"test {tmp_path}"
    with subprocess.Popen(
        [sys.executable, "-c", script, what], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert not had_turn(what)
        assert had_turn(what + " else")
        other.kill()
    wait_for(lambda: had_turn(what))


def test_where_there_are_no_turns_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exclusive, "_bind", lambda *_: errno.EPERM)
    monkeypatch.setattr(exclusive.time, "sleep", lambda _: pytest.fail("it waits"))
    with exclusive.only_one("test") as had:
        assert not had


def had_turn(what: str) -> bool:
    with exclusive.only_one(what, patience_s=0.2) as had:
        return had
