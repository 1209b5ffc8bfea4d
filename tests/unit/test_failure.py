"""How a rank's end is told: its signal or exit code, and whether the kernel ended it for its memory."""

from __future__ import annotations

import errno
import io
import signal
import sys
from pathlib import Path

import pytest

from launcher.errors import RunFailed
from launcher.records import Attempt
from launcher.run import Run
from launcher.runtime import failure, rank
from launcher.runtime.oom import OomKills

ATTEMPT = Attempt(0, 1)


class Full(io.StringIO):
    """A log on a full disk."""

    def write(self, _: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_the_kernel_is_asked_whether_it_was_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, codes = Run.create(tmp_path / "run"), (-signal.SIGKILL, -signal.SIGSEGV)
    run.attempt_dir(ATTEMPT).mkdir()
    now = OomKills.count()
    for before, word in (
        (now, "or somebody ended it"),
        (OomKills(now.host - 1, now.own), "a process of this host"),
        (OomKills(now.host - 1, now.own - 1), "a process of this job"),
    ):
        killed, crashed = (failure.of_rank(run, ATTEMPT, 0, "n1", c, before) for c in codes)
        assert word in str(killed.cause)
        assert ("batch.slots" in str(killed.fix)) is (before != now)
        assert "memory" not in str(crashed)


@pytest.mark.parametrize(
    ("code", "text"), [(0, "exit code 0"), (-9, "signal SIGKILL"), (-40, "signal 40")]
)
def test_every_end_of_a_process_has_words(code: int, text: str) -> None:
    assert failure.exit_text(code) == text


def test_a_rank_that_can_not_leave_its_error_says_by_its_exit_code_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.create(tmp_path / "run")  # the attempt has no folder: nothing can be written there
    monkeypatch.setattr(sys, "stderr", Full())
    error = RunFailed("finished rows can't be written")
    assert rank._leave_error(run, ATTEMPT, 0, error) == 75
