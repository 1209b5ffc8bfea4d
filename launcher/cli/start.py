"""Commands that make a run: run, submit, plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from launcher.cli.app import Json, MaySpec, Overrides, RunDir, Spec, Verify, app, complete_run
from launcher.cli.watching import foreground, queue
from launcher.console import out, say
from launcher.errors import UsageError


@app.command(epilog="Example: launcher run configs/demo.yaml generation.max_new_tokens=4")
def run(
    spec: Spec,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    verify: Verify = False,
    as_json: Json = False,
) -> None:
    """Run a job here; ends when the run is done."""
    from launcher import prepare

    planned = prepare.plan_job(spec, overrides or [], here=True, say=say(as_json), verify=verify)
    foreground(prepare.create_run(planned, run_dir), as_json)


@app.command(
    "submit", epilog="Example: launcher submit configs/llama2-70b-sequential.yaml --dry-run"
)
def submit_job(
    spec: Spec,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    verify: Verify = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print plan and script, submit nothing")
    ] = False,
    as_json: Json = False,
) -> None:
    """Send a job to Slurm; prints the run and the job id."""
    from launcher import prepare

    planned = prepare.plan_job(
        spec, overrides or [], here=False, say=say(as_json), fetch=not dry_run, verify=verify
    )
    if dry_run:
        prepare.check_weights(planned)
        show_plan(prepare.with_script(planned, run_dir), as_json)
        return
    queue(prepare.create_run(planned, run_dir), as_json)


@app.command(
    epilog="Example: launcher plan configs/llama2-70b-sequential.yaml resources.gpus_per_node=8; "
    "after a run: launcher plan --check demo-0001"
)
def plan(
    spec: MaySpec = None,
    overrides: Overrides = None,
    check: Annotated[
        str | None,
        typer.Option(
            "--check",
            metavar="RUN",
            help="of a run: what was planned, what came of it",
            autocompletion=complete_run,
        ),
    ] = None,
    verify: Verify = False,
    as_json: Json = False,
) -> None:
    """Say whether a job fits and what sits where, and show the sbatch script; starts nothing."""
    from launcher import prepare

    if check is not None or spec is None:
        check_plan(check, spec, as_json)
        return
    planned = prepare.plan_job(
        spec, overrides or [], here=False, say=say(as_json), fetch=False, verify=verify
    )
    show_plan(prepare.with_script(planned, None), as_json)


def check_plan(run: str | None, spec: Path | None, as_json: bool) -> None:
    from launcher import registry, state
    from launcher.report.checked import check_table
    from launcher.report.compare import pairs_of

    if run is None or spec is not None:
        raise UsageError(
            "launcher plan takes a spec, or --check and a run", fix="launcher plan --help"
        )
    found = registry.find(run)
    pairs = pairs_of(found, state.stand(found).state)
    document = {"run": str(found.path), "pairs": pairs}
    out(document, as_json, check_table(found.name, pairs))


def show_plan(planned: Any, as_json: bool) -> None:
    from launcher.report.table import plan_table

    found = planned.plan
    out(found.model_dump(mode="json"), as_json, plan_table(found))
    if found.script:
        out(None, as_json, f"\n{found.script}")
    if not found.fits:
        raise typer.Exit(3)
