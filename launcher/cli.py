"""The command line: one short function per command. Only this module and console.py print, only this one exits."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launcher.console import out, say
from launcher.errors import LauncherError

if TYPE_CHECKING:
    from launcher.run import Run

app = typer.Typer(
    add_completion=True,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Batch generation with language models too big for one GPU, and the account of where the time went.",
    epilog="Start with: launcher run configs/demo.yaml",
)

Spec = Annotated[Path, typer.Argument(help="the job spec, a YAML file", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="spec values to replace", show_default=False),
]
RunDir = Annotated[Path | None, typer.Option("--run-dir", help="put the run exactly there")]
RunRef = Annotated[
    str | None,
    typer.Argument(
        metavar="[RUN]",
        help="directory, name or Slurm job id; the latest if left out",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="one JSON document on stdout, nothing else")]


@app.command(epilog="Example: launcher run configs/demo.yaml generation.max_new_tokens=4")
def run(
    spec: Spec, overrides: Overrides = None, run_dir: RunDir = None, as_json: Json = False
) -> None:
    """Run a job here; ends when the run is done."""
    from launcher import submit

    planned = submit.plan_job(spec, overrides or [], here=True, say=say(as_json))
    _foreground(submit.create_run(planned, run_dir), as_json)


@app.command(
    "submit", epilog="Example: launcher submit configs/llama2-70b-sequential.yaml --dry-run"
)
def submit_job(
    spec: Spec,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print plan and script, submit nothing")
    ] = False,
    as_json: Json = False,
) -> None:
    """Send a job to Slurm; prints the run and the job id."""
    from launcher import submit

    planned = submit.plan_job(
        spec, overrides or [], here=False, say=say(as_json), fetch=not dry_run
    )
    if dry_run:
        _show_plan(submit.with_script(planned, run_dir), as_json)
        return
    _queue(submit.create_run(planned, run_dir), as_json)


@app.command(
    epilog="Example: launcher plan configs/llama2-70b-sequential.yaml resources.gpus_per_node=8"
)
def plan(spec: Spec, overrides: Overrides = None, as_json: Json = False) -> None:
    """Say whether a job fits and what sits where, and show the sbatch script; starts nothing."""
    from launcher import submit

    planned = submit.plan_job(spec, overrides or [], here=False, say=say(as_json), fetch=False)
    _show_plan(submit.with_script(planned, None), as_json)


@app.command("list", epilog="Example: launcher list --json")
def list_runs(as_json: Json = False) -> None:
    """List the runs, the latest last."""
    from launcher import registry, state
    from launcher.report.table import runs_table

    rows = [state.look_or_broken(found).as_dict() for found in registry.list_runs()]
    out(rows, as_json, runs_table(rows) if rows else "no runs yet: launcher run configs/demo.yaml")


@app.command(epilog="Example: launcher status demo-0001")
def status(run: RunRef = None, as_json: Json = False) -> None:
    """Say how a run is doing: state, rows, speed, ranks, and why it failed if it did."""
    from launcher import registry, state
    from launcher.report.table import status_table

    found = state.look(registry.find(run)).as_dict()
    out(found, as_json, status_table(found))


@app.command(epilog="Example: launcher logs -f --rank 0")
def logs(
    run: RunRef = None,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="go on until the run ends")
    ] = False,
    rank: Annotated[int | None, typer.Option("--rank", help="of this rank only")] = None,
    as_json: Json = False,
) -> None:
    """Print what agents and ranks have said, each line with who said it."""
    from launcher import registry, state
    from launcher.report import logs as run_logs

    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `launcher logs | head` ends quietly
    found = registry.find(run)

    def over() -> bool:
        return not state.alive(state.look(found))

    lines = run_logs.follow(found, rank, over) if follow else run_logs.read(found, rank)
    if as_json:
        out([{"who": who, "line": line} for who, line in lines], True)
        return
    for who, line in lines:
        print(f"{who} | {line}", flush=True)


@app.command(epilog="Example: launcher cancel demo-0001")
def cancel(run: RunRef = None, as_json: Json = False) -> None:
    """Stop a run: finished rows are kept, rows in flight are given up, `resume` goes on."""
    from launcher import control, registry

    found = registry.find(run)
    jobs = control.cancel(found)
    out(
        {"run": str(found.path), "stopped": jobs},
        as_json,
        f"stopped {found.name}: {len(jobs)} jobs",
    )


@app.command(epilog="Example: launcher resume demo-0001")
def resume(run: RunRef = None, as_json: Json = False) -> None:
    """Go on with a run that was stopped or failed, where it was started: here or on Slurm."""
    from launcher import control, registry

    found = registry.find(run)
    scheduler = control.ready_to_resume(found)
    if scheduler is None:
        _finished(found, as_json)
    elif scheduler == "local":
        _foreground(found, as_json)
    else:
        _queue(found, as_json)


@app.command(epilog="Example: launcher verify demo-0001")
def verify(run: RunRef = None, as_json: Json = False) -> None:
    """Check a complete run: every row exactly once, in order, and the hashes of the manifest."""
    from launcher import ledger, registry

    found = registry.find(run)
    problems = ledger.verify(found)
    text = (
        "\n".join(problems)
        or f"{found.name}: every row is there once, in order; the hashes are right"
    )
    out({"run": str(found.path), "ok": not problems, "problems": problems}, as_json, text)
    if problems:
        raise typer.Exit(1)


@app.command(epilog="Example: launcher report demo-0001")
def report(run: RunRef = None, as_json: Json = False) -> None:
    """Write a run's report.html, also while it is under way, and print where it is."""
    from launcher import registry
    from launcher.report.html import write_report

    found = registry.find(run)
    write_report(found)
    complete = found.manifest.exists()
    so_far = "" if complete else "\nthe run is not complete: this is its report so far"
    value = {"run": str(found.path), "report": str(found.report), "complete": complete}
    out(value, as_json, f"{found.report}{so_far}")


@app.command(epilog="Example: launcher schema > job.schema.json")
def schema(as_json: Json = False) -> None:
    """Print the JSON Schema of the job spec, for editors."""
    from launcher.job.load import json_schema

    out(json_schema(), True)


def main() -> None:
    """Entry point: errors become text on stderr (JSON on stdout with --json) and the exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)  # as ^C: clean up, drain
    try:
        app()
    except LauncherError as error:
        if "--json" in sys.argv:
            print(json.dumps(error.as_dict()))
        else:
            print(f"launcher: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:  # a disk, a path or a permission that no command foresaw
        print(f"launcher: {error}\n  likely cause: the system refused it", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _queue(run: Run, as_json: bool) -> None:
    """Send a run to Slurm and say where it is."""
    from launcher import control

    jobs = control.start_on_slurm(run)
    out({"run": str(run.path), "jobs": jobs}, as_json, f"run {run.path}\njob {' '.join(jobs)}")


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _foreground(run: Run, as_json: bool) -> None:
    """Run the agent here with progress; ^C asks for a drain, a second ^C ends it at once."""
    from launcher import control, ledger, state
    from launcher.report.progress import Progress

    job, finished = control.start_here(run), ledger.Finished(run)
    interrupted = False
    with Progress(lambda: state.look(run, finished).as_dict(), sys.stderr, as_json) as progress:
        while job.running():
            try:
                time.sleep(0.2)
                progress.update()
            except KeyboardInterrupt:
                job.kill() if interrupted else job.stop()
                interrupted = True
                progress.note(
                    f"stopping after the current step; ^C again stops at once\nlauncher resume {run.path} goes on"
                )
    if interrupted:
        raise KeyboardInterrupt
    job.result()
    _finished(run, as_json)


def _finished(run: Run, as_json: bool) -> None:
    """Show what came of a run; exit 1 if rows failed, 75 if it is not complete."""
    from launcher.errors import RunFailed
    from launcher.report.table import summary_table
    from launcher.run import read_json

    summary = read_json(run.summary)
    if summary is None or not run.manifest.exists():
        raise RunFailed(
            "the run stopped before all rows were done",
            where=str(run.path),
            fix=f"launcher resume {run.path}",
        )
    out({"run": str(run.path), **summary}, as_json, summary_table(summary))
    out(None, as_json, f"\n{run.outputs}")
    if summary["rows"]["failed"]:
        raise typer.Exit(1)


def _show_plan(planned: Any, as_json: bool) -> None:
    from launcher.report.table import plan_table

    found = planned.plan
    out(found.model_dump(mode="json"), as_json, plan_table(found))
    if found.script:
        out(None, as_json, f"\n{found.script}")
    if not found.fits:
        raise typer.Exit(3)
