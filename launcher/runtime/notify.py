"""Notify: the spec's command, run when a run has ended, by the agent that saw it end."""

from __future__ import annotations

import subprocess

from launcher import environ, ledger
from launcher.disk import create_exclusive
from launcher.errors import LauncherError
from launcher.job.spec import JobSpec
from launcher.logs import get_logger
from launcher.run import Run

PATIENCE_S = 60.0


def notify(run: Run, spec: JobSpec, state: str, message: str = "") -> None:
    """Run ``notify.command`` if ``state`` (complete, failed, stopped) is one to tell. Never raises: what goes wrong
    is in the agent's log.

    Facts go by the environment, never into the command's text.
    """
    command = spec.notify.command
    if command is None or state not in spec.notify.on:
        return
    logger = get_logger()
    try:
        if state == "complete" and not create_exclusive(run.told(state), "{}\n"):
            return  # another world's agent has told it
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            env=environ.with_own(_facts(run, state, message)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired, LauncherError, ValueError) as error:
        logger.warning("notify.command: %s", error)
        return
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-500:]
        logger.warning("notify.command ended with status %d: %s", done.returncode, said)
    else:
        logger.info("notify.command told: %s", state)


def _facts(run: Run, state: str, message: str) -> dict[str, str]:
    manifest = ledger.read_manifest(run)
    if manifest is not None:
        done, failed = manifest["rows"]["total"], manifest["rows"]["failed"]
    else:
        seen = ledger.Finished(run).update()
        done, failed = int(seen.done.sum()), int(seen.failed.sum())
    return {
        "LAUNCHER_RUN": str(run.path),
        "LAUNCHER_NAME": run.name,
        "LAUNCHER_STATE": state,
        "LAUNCHER_ROWS": str(done),
        "LAUNCHER_FAILED_ROWS": str(failed),
        "LAUNCHER_MESSAGE": message.replace("\0", ""),
    }
