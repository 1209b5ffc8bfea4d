"""How a rank's end is told: its signal or exit code, and whether the kernel ended it for its memory."""

from __future__ import annotations

import errno
import io
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher import environ, logs
from launcher.errors import RunFailed
from launcher.records import Attempt
from launcher.run import Run, read_json
from launcher.runtime import failure, heartbeat, script
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
    assert failure.leave_error(run, ATTEMPT, 0, error) == 75


def left_by(run: Run, cause: Callable[[], object]) -> dict[str, Any]:
    """What a rank leaves that ``cause`` ends."""
    try:
        cause()
    except Exception as error:  # noqa: BLE001 - whatever it is
        failure.leave_error(run, ATTEMPT, 3, error)
    found: dict[str, Any] = read_json(run.rank_error(ATTEMPT, 3))
    return found


def write_to_a_full_disk() -> None:
    Path("/dev/full").write_text("x" * 100_000)


def test_what_the_system_refuses_a_rank_is_told_for_what_it_is(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    run.attempt_dir(ATTEMPT).mkdir()
    after = f"see {run.log(ATTEMPT, 'rank-0003')}; launcher resume {run.path}"
    compiler = left_by(run, lambda: subprocess.run(["no-such-gcc"], check=True))
    what = "FileNotFoundError: [Errno 2] No such file or directory: 'no-such-gcc'"
    assert (compiler["what"], compiler["cause"], compiler["fix"]) == (what, None, after)
    full = left_by(run, write_to_a_full_disk)
    assert (full["error"], full["cause"]) == ("RunFailed", "the disk is full")
    assert full["fix"] == f"make room there, then {after}"
    assert full["where"] == f"rank 3 on {os.uname().nodename}"
    gone = left_by(run, run.plan.read_bytes)
    assert gone["where"].endswith(f", {run.plan}")
    assert gone["cause"] == "it was removed or moved meanwhile"
    assert after in left_by(run, lambda: bytes(1 << 62))["fix"]


def test_only_what_the_runs_disk_refuses_is_a_failed_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.create(tmp_path / "run")
    monkeypatch.setattr(logs.get_logger(), "propagate", True)
    caplog.set_level("INFO", "launcher")
    for other in (
        lambda: socket.create_server(("192.0.2.1", 1)),
        (tmp_path / "spec.yaml").read_bytes,
    ):
        with pytest.raises(OSError, match=r"assign|No such"), failure.refusals(run):
            other()
    assert not caplog.records
    for own, where in ((write_to_a_full_disk, run.path), (run.plan.read_bytes, run.plan)):
        with pytest.raises(RunFailed) as caught, failure.refusals(run):
            own()
        assert caught.value.where == str(where)
        assert caplog.records.pop().exc_info


def test_the_rank_of_a_script_tells_a_full_disk_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.create(tmp_path / "run")
    run.attempt_dir(ATTEMPT).mkdir()
    run.job.touch()
    place = environ.RankEnv(rank=0, local_rank=0, world_size=1, attempt=ATTEMPT.name)
    monkeypatch.setattr(environ, "rank", lambda: place)
    monkeypatch.setattr(logs, "to", lambda *_: None)
    monkeypatch.setattr(heartbeat, "write_json", lambda *_, **__: write_to_a_full_disk())
    assert script.main(str(run.path)) == 75
    assert read_json(run.rank_error(ATTEMPT, 0))["cause"] == "the disk is full"
