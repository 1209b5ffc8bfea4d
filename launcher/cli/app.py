"""What every command shares: the app, and the arguments that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    add_completion=True,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Batch generation with language models too big for one GPU, and the account of where the time went.",
    epilog="Start with: launcher run configs/demo.yaml",
)


def complete_run(incomplete: str) -> list[str]:
    """Names of runs for the shell, the latest first."""
    from launcher import registry

    names = [run.name for run in reversed(registry.list_runs())]
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete)]


Spec = Annotated[Path, typer.Argument(help="the job spec, a YAML file", show_default=False)]
MaySpec = Annotated[
    Path | None, typer.Argument(help="the job spec, a YAML file", show_default=False)
]
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
        autocompletion=complete_run,
    ),
]
Verify = Annotated[
    bool,
    typer.Option("--verify-weights", help="compare the weights with their recorded sha256"),
]
Json = Annotated[bool, typer.Option("--json", help="one JSON document on stdout, nothing else")]
