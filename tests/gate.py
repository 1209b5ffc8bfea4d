"""Runs that are held: their ranks wait at a gate until the test opens it, or until the run is asked to stop.

What a test does to a run that is under way then meets a run that is under way, however quick or slow the machine is.
"""

from __future__ import annotations

import os
from pathlib import Path

from jobs import wait_for

# In every process of the run, through PYTHONPATH. A rank that takes rows waits before one that is more than its share;
# what it has in its slots stays there. Its heart beats on.
HOOK = """
import os, sys, time
from pathlib import Path

folder, rows = Path({folder!r}), {rows!r}
if sys.orig_argv[-3:-1] == ["-m", "launcher.runtime.rank"] and "launch" not in sys.orig_argv:
    from launcher.input.prompts import InputIndex
    from launcher.runtime.heartbeat import Heartbeat

    who = os.environ["LAUNCHER_ATTEMPT"] + "-r" + os.environ["RANK"]
    beats, taken, request, begin = [], [], InputIndex.request, Heartbeat.__init__
    share = rows.get(os.environ["RANK"], rows[""])

    def is_closed():
        try:
            return len(taken) > int((folder / "share").read_text() or share)
        except FileNotFoundError:
            return len(taken) > share

    def begin_and_keep(beat, *arguments, **named):
        begin(beat, *arguments, **named)
        beats.append(beat)

    def held_request(index, row):
        taken.append(row)
        if is_closed():
            (folder / who).touch()
            while is_closed() and not (folder / "open").exists() and not beats[0].draining.is_set():
                time.sleep(0.01)
        return request(index, row)

    InputIndex.request, Heartbeat.__init__ = held_request, begin_and_keep
if {patient!r} and sys.orig_argv[-2:-1] == ["launcher.runtime.agent"]:
    from launcher.runtime import watchdog

    watchdog.DEAF_S = 600.0
"""


def hook(folder: Path, program: str) -> dict[str, str]:
    """An environment in which ``program`` is the first that each Python process runs. It is kept in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(program)
    before = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(folder), *([before] if before else [])])}


class Gate:
    """Each rank that takes rows takes ``rows`` of them, and waits; of those in ``few`` (rank: rows) so many.

    ``env`` is for the command that starts the run. ``limits.step`` has to be longer than the gate is closed. A
    ``patient`` agent gives ranks that drain all of limits.drain, also where the machine lets them begin late.
    """

    def __init__(
        self,
        folder: Path,
        rows: int,
        few: dict[int, int] | None = None,
        *,
        patient: bool = False,
    ) -> None:
        each = {"": rows, **{str(rank): count for rank, count in (few or {}).items()}}
        self.env = hook(folder, HOOK.format(folder=str(folder), rows=each, patient=patient))
        self._folder = folder

    def wait(self, ranks: int = 1, attempt: int = 1) -> None:
        """Until so many ranks of the attempts of this number have taken their share."""
        wait_for(lambda: len(list(self._folder.glob(f"w*-a{attempt:04d}-r*"))) >= ranks)

    def let(self, rows: int) -> None:
        """Let each rank take so many in all before it waits again."""
        (self._folder / "share").write_text(str(rows))

    def open(self) -> None:
        """Let all go, and whoever comes later."""
        (self._folder / "open").touch()
