"""Files that others replace while they are read."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any, cast

import pytest

from launcher.disk import STALE_TRIES, read_json
from launcher.errors import Damaged, LauncherError

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
