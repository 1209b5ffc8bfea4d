"""Commands that measure: bench machine, bench scale, bench attention."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launcher.cli.app import Json, Overrides, Spec, app
from launcher.console import out, say
from launcher.errors import UsageError

bench = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Measure, for better plans.",
    epilog="Example: launcher bench machine --dir /scratch/models",
)
app.add_typer(bench, name="bench")


@bench.command(epilog="Example: launcher bench machine --dir /scratch/models")
def machine(
    folder: Annotated[Path, typer.Option("--dir", help="where checkpoints are read from")] = Path(),
    as_json: Json = False,
) -> None:
    """Measure this machine while nothing else runs on it, for `plan` to use: matrix products, memory, links, disk."""
    from launcher.bench.machine import measure
    from launcher.plan.measured import save_profile
    from launcher.report.measures import profile_table

    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}", where="--dir")
    found = measure(folder.absolute(), say(as_json))
    path = save_profile(found)
    out({"path": str(path), **found.model_dump(mode="json")}, as_json, profile_table(found))
    out(None, as_json, f"\n{path}")


@bench.command(
    epilog="Example: launcher bench scale configs/llama2-70b-pipeline.yaml --worlds 10,100,1000"
)
def scale(  # noqa: PLR0913 - each is an option of the command line
    spec: Spec,
    overrides: Overrides = None,
    *,
    worlds: Annotated[str, typer.Option(help="how many share the run, with commas")] = "10,100",
    rows: Annotated[int, typer.Option(min=1, help="prompts")] = 1_000_000,
    mtbf_days: Annotated[float, typer.Option(min=0, help="a node's; 0: none fails")] = 100.0,
    stragglers: Annotated[float, typer.Option(min=0, max=1, help="share of the worlds")] = 0.02,
    slowdown: Annotated[float, typer.Option(min=1, help="of stragglers")] = 1.5,
    queue_s: Annotated[float, typer.Option(min=0, help="until a failed world runs again")] = 600.0,
    tokens_per_s: Annotated[float | None, typer.Option(help="of a world, not the plan's")] = None,
    seed: Annotated[int, typer.Option(help="of failures and stragglers")] = 0,
    as_json: Json = False,
) -> None:
    """Simulate many worlds that share one run: time, work lost to failures, load on filesystem and Slurm."""
    from launcher import prepare
    from launcher.bench.scale import Assumed, study
    from launcher.report.measures import scale_table

    numbers = _numbers(worlds, "--worlds")
    planned = prepare.plan_job(spec, overrides or [], here=False, say=say(as_json), fetch=False)
    assumed = Assumed(
        rows=rows,
        node_mtbf_days=mtbf_days or None,
        stragglers=stragglers,
        slowdown=slowdown,
        queue_s=queue_s,
        seed=seed,
        tokens_per_s=tokens_per_s,
    )
    found = study(planned.plan, numbers, assumed, planned.spec.slurm.max_restarts)
    out(found, as_json, scale_table(found))


@bench.command(epilog="Example: launcher bench attention --lengths 128,512")
def attention(
    lengths: Annotated[str, typer.Option(help="of prompts, in tokens, with commas")] = "128,512",
    new_tokens: Annotated[int, typer.Option(min=1, help="that are generated")] = 16,
    model: Annotated[
        Path | None, typer.Option(help="a checkpoint's folder, or that of a config alone")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare eager, sdpa and flash attention, with and without KV cache, on this machine's device."""
    from launcher.bench.attention import compare
    from launcher.report.measures import attention_table

    found = compare(_numbers(lengths, "--lengths"), new_tokens, model, say(as_json))
    out(found, as_json, attention_table(found))


def _numbers(text: str, option: str) -> list[int]:
    numbers = [int(word) if word.strip().isdecimal() else 0 for word in text.split(",")]
    if min(numbers) < 1:
        raise UsageError("should be numbers with commas", where=option, fix="such as 10,100")
    return numbers
