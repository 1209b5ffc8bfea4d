"""Files that others replace while they are read."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from launcher import crash
from launcher.disk import STALE_TRIES, create_exclusive, read_json, write_json
from launcher.errors import Damaged, LauncherError, RunFailed

STALE = OSError(errno.ESTALE, "stale file handle")


class OnNfs:
    """A path that answers a read as a file on NFS may: an error, or its bytes."""

    def __init__(self, *answers: bytes | OSError) -> None:
        self._answers = list(answers)

    def read_bytes(self) -> bytes:
        answer = self._answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer


@pytest.mark.parametrize(("last", "found"), [(b'{"a": 1}', {"a": 1}), (FileNotFoundError(), None)])
@pytest.mark.parametrize("stale", [0, 1, STALE_TRIES - 1])
def test_a_file_that_is_replaced_is_read_again(stale: int, last: Any, found: Any) -> None:
    assert read_json(cast(Path, OnNfs(*[STALE] * stale, last))) == found


@pytest.mark.parametrize("answers", [[STALE] * STALE_TRIES, [OSError(errno.EIO, "I/O error")]])
def test_what_does_not_pass_is_told(answers: list[OSError]) -> None:
    with pytest.raises(OSError, match=r"stale|I/O"):
        read_json(cast(Path, OnNfs(*answers)))


@pytest.mark.parametrize("text", ["", "{", "junk", "[" * 100_000])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(text)
    with pytest.raises(Damaged, match=r"manifest\.json: not JSON") as caught:
        read_json(path)
    assert isinstance(caught.value, LauncherError)


@pytest.mark.parametrize("text", ["[]", "7", "null", '"text"'])
def test_a_file_of_another_kind_is_damaged(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ended.json"
    path.write_text(text)
    with pytest.raises(Damaged, match=r"ended\.json: not a JSON object"):
        read_json(path)


@pytest.mark.parametrize("write", [write_json, lambda path, _: create_exclusive(path, "")])
def test_a_write_that_fails_names_its_file(
    write: Callable[[Path, Any], object], tmp_path: Path
) -> None:
    """The system does not, for a full disk."""
    crash.arm("ended.written:1:ENOSPC")
    try:
        with pytest.raises(OSError, match="No space left") as caught:
            write(tmp_path / "ended.json", {})
    finally:
        crash.arm(None)
    told = RunFailed.of_system(caught.value, "the run", "launcher resume RUN")
    assert told.where == str(tmp_path / "ended.json")
    assert (told.cause, told.exit_code) == ("the disk is full", 75)
    assert told.fix == "make room there, then launcher resume RUN"
    assert not list(tmp_path.iterdir())
