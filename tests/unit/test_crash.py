"""Crash points: off unless the environment says so, and only there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launcher import crash, environ

PROGRAM = """
import sys
from pathlib import Path
from launcher import crash
for number in range(3):
    crash.point("renamed", Path(sys.argv[1]))
    print(number, flush=True)
"""


def come_by(path: str, order: str | None) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "LAUNCHER_CRASH"}
    env |= {"LAUNCHER_CRASH": order} if order else {}
    argv = [sys.executable, "-c", PROGRAM, path]
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("path", "order", "passed"),
    [
        ("run/job.yaml", None, 3),
        ("run/job.yaml", "job.written", 3),
        ("run/job.yaml", "job.renamed", 0),
        ("run/attempts/w0000-a0001/node-0003.json", "node.renamed:2", 1),
        ("run/outputs.jsonl", "outputs.renamed:3", 2),
        ("run/status/w0000-a0001-r0003.json", "job.renamed", 3),
    ],
)
def test_the_environment_kills_at_a_named_pass(path: str, order: str | None, passed: int) -> None:
    done = come_by(path, order)
    assert done.stdout.split() == ["0", "1", "2"][:passed]
    assert done.returncode == (0 if passed == 3 else -signal.SIGKILL)


def test_an_error_instead() -> None:
    done = come_by("run/outputs.jsonl", "outputs.renamed:1:ENOSPC")
    assert "OSError: [Errno 28] No space left on device" in done.stderr


def test_a_point_that_there_is_not() -> None:
    with pytest.raises(ValueError, match=r"no crash point 'outputs.eaten'"):
        crash.arm("outputs.eaten")


def test_it_does_not_travel_to_jobs_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCHER_CRASH", "outputs.renamed")
    assert "LAUNCHER_CRASH" not in environ.travelling([])


def test_files_that_are_named_for_their_attempt_go_by_their_folder() -> None:
    assert crash._kind(Path("run/status/w0000-a0001-r0003.json")) == "status"
    assert crash._kind(Path("run/attempts/start-0001.json")) == "start"
