"""Runs that are started: here, with progress until they end, or on Slurm."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from launcher.console import out
from launcher.errors import Interrupted, RunFailed

if TYPE_CHECKING:
    from launcher.run import Run

WATCH_S = 1.0


def queue(run: Run, as_json: bool) -> None:
    """Send a run to Slurm and say where it is."""
    from launcher import control
    from launcher.runtime import failure

    with failure.refusals(run):
        jobs = control.start_on_slurm(run)
    out({"run": str(run.path), "jobs": jobs}, as_json, f"run {run.path}\njob {' '.join(jobs)}")


def foreground(run: Run, as_json: bool) -> None:
    """Run the agent here with progress; ^C asks for a drain, a second ^C ends it at once. Raises Interrupted."""
    from launcher.runtime import failure

    try:
        with failure.refusals(run):
            _to_the_end(run, as_json)
    except KeyboardInterrupt:
        fix = f"launcher resume {run.path}"
        raise Interrupted("interrupted", where=str(run.path), fix=fix) from None
    show_finished(run, as_json)


def _to_the_end(run: Run, as_json: bool) -> None:
    from launcher import control, ledger, state
    from launcher.report.progress import Progress

    job, finished = control.start_here(run), ledger.Finished(run)
    interrupted = False
    stopping = (
        "stopping after the current step"
        if run.has_rows
        else "the script is asked to save and stop"
    )
    with Progress(lambda: state.look(run, finished).as_dict(), sys.stderr, as_json) as progress:
        while job.running():
            try:
                time.sleep(0.2)
                job.check()
                progress.update()
            except KeyboardInterrupt:
                job.kill() if interrupted else job.stop()
                interrupted = True
                progress.note(f"{stopping}; ^C again stops at once")
    if interrupted:
        raise KeyboardInterrupt
    job.result()


def watch_run(run: Run) -> None:
    """Show how a run is doing until it ends or ^C: over the whole terminal, or as lines where there is none."""
    from rich.console import Console

    from launcher import ledger, state
    from launcher.report.progress import Progress
    from launcher.report.watch import Screen

    finished, console = ledger.Finished(run), Console()
    with contextlib.suppress(KeyboardInterrupt):
        if console.is_terminal:
            with Screen(run, console) as screen:
                while state.alive(seen := state.look(run, finished)):
                    screen.show(seen.as_dict())
                    time.sleep(WATCH_S)
            return
        with Progress(lambda: state.look(run, finished).as_dict(), sys.stdout, False) as progress:
            while state.alive(state.look(run, finished)):
                progress.update()
                time.sleep(WATCH_S)


def show_finished(run: Run, as_json: bool) -> None:
    """Show what came of a run; exit 1 if rows failed, 75 if it is not complete."""
    from launcher.report.table import summary_table
    from launcher.run import read_json

    summary = read_json(run.summary)
    if summary is None or not run.manifest.exists():
        raise RunFailed(
            "the run stopped before it was done",
            where=str(run.path),
            fix=f"launcher resume {run.path}",
        )
    out({"run": str(run.path), **summary}, as_json, summary_table(summary))
    out(None, as_json, f"\n{_results(run)}")
    if summary["rows"]["failed"]:
        raise typer.Exit(1)


def _results(run: Run) -> Path:
    """What a user looks for first."""
    if not run.has_rows:
        return run.files
    return run.table if run.table.exists() else run.outputs
