"""Commands about runs that exist: list, status, logs, cancel, resume, verify, report."""

from __future__ import annotations

import signal
from typing import Annotated

import typer

from launcher.cli.app import Json, RunRef, app
from launcher.cli.watching import foreground, queue, show_finished, watch_run
from launcher.console import clean, out


@app.command("list", epilog="Example: launcher list --json")
def list_runs(as_json: Json = False) -> None:
    """List the runs, the latest last."""
    from launcher import registry, state
    from launcher.report.table import runs_table

    rows = [found.as_dict() for found in state.look_all(registry.list_runs())]
    out(rows, as_json, runs_table(rows) if rows else "no runs yet: launcher run configs/demo.yaml")


@app.command(epilog="Example: launcher status demo-0001 --watch")
def status(
    run: RunRef = None,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", help="show it, also what each rank's time goes into, until it ends"
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Say how a run is doing: state, rows, speed, ranks, and why it failed if it did."""
    from launcher import registry, state
    from launcher.report.table import status_table

    found = registry.find(run)
    if watch and not as_json:
        watch_run(found)
    seen = state.look(found).as_dict()
    out(seen, as_json, status_table(seen))


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
        print(clean(f"{who} | {line}"), flush=True)


@app.command(epilog="Example: launcher cancel demo-0001")
def cancel(run: RunRef = None, as_json: Json = False) -> None:
    """Stop a run: finished rows are kept, rows in flight are given up, `resume` goes on."""
    from launcher import control, registry
    from launcher.report.cells import plural

    found = registry.find(run)
    jobs = control.cancel(found)
    text = f"stopped {found.name}: {plural(len(jobs), 'job')}"
    out(
        {"run": str(found.path), "stopped": jobs},
        as_json,
        text if jobs else f"{found.name}: nothing to stop",
    )


@app.command(epilog="Example: launcher resume demo-0001")
def resume(run: RunRef = None, as_json: Json = False) -> None:
    """Go on with a run that was stopped or failed, where it was started: here or on Slurm. Of a complete one, gather
    results again that were removed."""
    from launcher import control, registry
    from launcher.runtime import coordinator

    found = registry.find(run)
    scheduler = control.scheduler_to_resume(found)
    if scheduler is None:
        coordinator.restore(found)
        show_finished(found, as_json)
    elif scheduler == "local":
        foreground(found, as_json)
    else:
        queue(found, as_json)


@app.command(epilog="Example: launcher verify demo-0001")
def verify(run: RunRef = None, as_json: Json = False) -> None:
    """Check a complete run: every row exactly once, in order, and the hashes of the manifest."""
    from launcher import ledger, registry

    found = registry.find(run)
    problems = ledger.verify(found)
    right = (
        "every row is there once, in order; the hashes are right"
        if found.has_rows
        else "complete: a script, no rows to judge; what it made it alone can judge"
    )
    text = "\n".join(problems) or f"{found.name}: {right}"
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
