"""The task `script` on one rank: starts the user's script as `accelerate launch` would, and watches it.

Runs as `python -m launcher.runtime.script RUN`. The script is a process of its own, so that whatever it does, be it
to crash or to wait in a collective, its rank shows signs of life, hears a request to stop, and says how it ended.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from launcher import environ, logs
from launcher.errors import LauncherError
from launcher.job.load import load_resolved
from launcher.job.script import ScriptSpec
from launcher.plan.plan import Plan
from launcher.records import Attempt
from launcher.run import Run
from launcher.runtime import failure, process
from launcher.runtime.heartbeat import Heartbeat
from launcher.runtime.rank import check_world

POLL_S = 0.2


@dataclass
class Script:
    """The user's process, and what has been passed on to it."""

    child: subprocess.Popen[bytes]
    asked: bool = False  # to stop

    def stop(self, *_: int | FrameType | None) -> None:
        """SIGTERM, once: save what you have, and leave."""
        if not self.asked:
            self.asked = True
            self.child.send_signal(signal.SIGTERM)


def main(path: str) -> int:
    """Exit status: 0 where the script ended with 0, or after it was asked to stop."""
    run, env = Run.open(path), environ.rank()
    attempt = Attempt.parse(env.attempt)
    logs.to(f"rank {env.rank}", run.log(attempt, f"rank-{env.rank:04d}"))
    error: Exception | None
    try:
        error = _work(run, attempt, env)
    except Exception as raised:  # noqa: BLE001 - the last frame: the agent is told, the log has it all
        error = raised
    return 0 if error is None else failure.leave_error(run, attempt, env.rank, error)


def _work(run: Run, attempt: Attempt, env: environ.RankEnv) -> LauncherError | None:
    """The error of a script that failed. Raises what keeps it from being started or watched; it ends with this process."""
    beat = Heartbeat(run, attempt, env.rank, replica=0, pid=os.getpid())
    spec, plan = load_resolved(run.job), Plan.read(run.plan)
    assert spec.script is not None
    check_world(plan, env)
    own = environ.for_script(_told(run, attempt, env.rank), cpu=plan.device == "cpu")
    log, folder = run.log(attempt, f"rank-{env.rank:04d}"), Path(spec.script.directory)
    script = Script(process.start(_argv(spec.script), log, own, folder))
    signal.signal(signal.SIGTERM, script.stop)
    beat.measured(started=time.time())
    beat.phase("running")
    code = _watch(script, run, attempt, beat)
    beat.measured(exit_code=code)
    # A rank that lost one that had left already may have ended before it was asked itself.
    asked = script.asked or run.attempt_file(attempt, "drain").exists()
    if code and not asked:
        what = f"the script of rank {env.rank} ended with {failure.exit_text(code)}"
        return failure.describe(run, attempt, what, beat.status.host, env.rank, code)
    logs.get_logger().info("the script ended with %s", failure.exit_text(code))
    beat.phase("finished")
    beat.close()
    return None


def _watch(script: Script, run: Run, attempt: Attempt, beat: Heartbeat) -> int:
    """The exit code. Passes a request to stop on, and tells the heartbeat how far the script says that it is."""
    said = run.progress(attempt, beat.status.rank)
    while True:
        try:
            return script.child.wait(POLL_S)
        except subprocess.TimeoutExpired:
            pass
        if beat.draining.is_set() and not script.asked:
            beat.phase("draining")
            script.stop()
        beat.status.steps = _steps(said, beat.status.steps)


def _steps(said: Path, before: int) -> int:
    """What the script wrote last; it may be writing now."""
    try:
        return int(said.read_text())
    except (FileNotFoundError, ValueError):
        return before


def _argv(script: ScriptSpec) -> list[str]:
    program = [sys.executable] if script.path.endswith(".py") else []
    return [*program, script.path, *script.args]


def _told(run: Run, attempt: Attempt, rank: int) -> dict[str, str]:
    """What the script gets to know; docs/scripts.md says it to its author."""
    return {
        "LAUNCHER_RUN": str(run.path),
        "LAUNCHER_ATTEMPT": attempt.name,
        "LAUNCHER_RESTARTS": str(attempt.number - 1),
        "LAUNCHER_FILES": str(run.files),
        "LAUNCHER_DRAIN": str(run.attempt_file(attempt, "drain")),
        "LAUNCHER_PROGRESS": str(run.progress(attempt, rank)),
    }


if __name__ == "__main__":
    process.die_with_parent()
    sys.exit(main(sys.argv[1]))
