"""Commands that make a run: run, submit, plan."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from launcher.cli.app import Json, Overrides, RunDir, Spec, app
from launcher.cli.watching import foreground, queue
from launcher.console import out, say


@app.command(epilog="Example: launcher run configs/demo.yaml generation.max_new_tokens=4")
def run(
    spec: Spec, overrides: Overrides = None, run_dir: RunDir = None, as_json: Json = False
) -> None:
    """Run a job here; ends when the run is done."""
    from launcher import submit

    planned = submit.plan_job(spec, overrides or [], here=True, say=say(as_json))
    foreground(submit.create_run(planned, run_dir), as_json)


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
        show_plan(submit.with_script(planned, run_dir), as_json)
        return
    queue(submit.create_run(planned, run_dir), as_json)


@app.command(
    epilog="Example: launcher plan configs/llama2-70b-sequential.yaml resources.gpus_per_node=8"
)
def plan(spec: Spec, overrides: Overrides = None, as_json: Json = False) -> None:
    """Say whether a job fits and what sits where, and show the sbatch script; starts nothing."""
    from launcher import submit

    planned = submit.plan_job(spec, overrides or [], here=False, say=say(as_json), fetch=False)
    show_plan(submit.with_script(planned, None), as_json)


def show_plan(planned: Any, as_json: bool) -> None:
    from launcher.report.table import plan_table

    found = planned.plan
    out(found.model_dump(mode="json"), as_json, plan_table(found))
    if found.script:
        out(None, as_json, f"\n{found.script}")
    if not found.fits:
        raise typer.Exit(3)
