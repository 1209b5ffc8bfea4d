"""A seeded killer of a run on this machine: which process, and after how many more rows, follows from its seed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
from dataclasses import dataclass
from pathlib import Path

from jobs import journaled, wait_for

from launcher.runtime import process

ROLES = ("rank", "accelerate", "agent", "command")


def processes(run: Path, command: int | None = None) -> dict[str, int]:
    """The living processes of a run's latest attempt, by role: ``rank 0``, ``accelerate``, ``agent``, ``command``."""
    attempts = sorted(run.glob("attempts/*/attempt.json"))
    if not attempts:
        return {}
    agent = json.loads(attempts[-1].read_text())["pid"]
    found = {"agent": agent}
    children = [] if process.start_time(agent) is None else process.children(agent)
    if children:
        found["accelerate"] = children[0]
    for path in run.glob(f"status/{attempts[-1].parent.name}-*.json"):
        status = json.loads(path.read_text())
        found[f"rank {status['rank']}"] = status["pid"]
    if command is not None:
        found["command"] = command
    return {name: pid for name, pid in found.items() if _is_ours(pid)}


def _is_ours(pid: int) -> bool:
    """A number may be another process's by now."""
    with contextlib.suppress(OSError):
        return b"launcher" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


@dataclass
class Killer:
    """Ends one process of a run per ``strike``."""

    random: random.Random

    def strike(self, run: Path, command: int) -> str | None:
        """Wait until some more rows are done, and SIGKILL somebody: who it was; None if the run was quicker."""
        rows, role = journaled(run) + self.random.randint(0, 60), self.random.choice(ROLES)

        def due() -> bool:
            done = process.start_time(command) is None
            return done or (journaled(run) >= rows and "rank 0" in processes(run))

        wait_for(due)
        found = processes(run, command)
        names = sorted(name for name in found if name.startswith(role))
        if not names or "command" not in found:
            return None
        name = self.random.choice(names)
        with contextlib.suppress(ProcessLookupError):
            os.kill(found[name], signal.SIGKILL)
        return name
