"""The command `init`: a first spec from a few questions, or from options."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launcher.cli.app import Json, app
from launcher.console import clean, out
from launcher.errors import LauncherError, UsageError

if TYPE_CHECKING:
    from launcher.draft import Answers

QUESTIONS = {
    "model": "model, a directory or a hub id",
    "input": "prompts: a file (JSONL, Parquet, text), a glob or a dataset's folder",
    "max_new_tokens": "most new tokens per prompt",
    "slurm": "on Slurm",
    "nodes": "nodes",
    "gpus_per_node": "GPUs per node, 0 for CPU ranks",
    "gpu": "kind of GPU (A100-80GB, H100 ...), auto if it is this machine's",
    "partition": "partition, empty for the cluster's default",
    "account": "account, empty for your default",
    "time": "time limit",
}
Checks = Mapping[str, Callable[[str], None]]
ON_SLURM = ("nodes", "gpus_per_node", "gpu", "partition", "account", "time")


def _option(name: str, flags: str | None = None) -> Any:
    return typer.Option(flags or f"--{name.replace('_', '-')}", help=QUESTIONS[name])


@app.command(epilog="Example: launcher init job.yaml --model org/model --input prompts.jsonl --yes")
def init(  # noqa: PLR0913 - each is an option of the command line
    spec: Annotated[Path, typer.Argument(help="the spec to write")] = Path("job.yaml"),
    *,
    model: Annotated[str | None, _option("model")] = None,
    given: Annotated[str | None, _option("input")] = None,
    max_new_tokens: Annotated[int | None, _option("max_new_tokens")] = None,
    slurm: Annotated[bool | None, _option("slurm", "--slurm/--here")] = None,
    nodes: Annotated[int | None, _option("nodes")] = None,
    gpus_per_node: Annotated[int | None, _option("gpus_per_node")] = None,
    gpu: Annotated[str | None, _option("gpu")] = None,
    partition: Annotated[str | None, _option("partition")] = None,
    account: Annotated[str | None, _option("account")] = None,
    time: Annotated[str | None, _option("time")] = None,
    example: Annotated[
        bool, typer.Option("--example", help="write three prompts where there are none")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="ask nothing")] = False,
    force: Annotated[bool, typer.Option("--force", help="replace a spec that is there")] = False,
    as_json: Json = False,
) -> None:
    """Write a first spec from a few answers; it is planned before it is written."""
    said = dict(locals())
    if spec.exists() and not force:
        raise UsageError("there is a spec already", where=str(spec), fix="another name, or --force")
    said["input"] = said.pop("given")
    asks = not (yes or as_json) and sys.stdin.isatty()
    checks: Checks = {
        "model": lambda name: _model(spec, name),
        "input": lambda name: _prompts(spec, name, example, asks),
    }
    answers = _answers({key: said[key] for key in QUESTIONS}, asks, checks)
    checks["input"](answers.input)  # it may have been an option
    _write(spec, answers, as_json)


def _answers(said: dict[str, Any], asks: bool, checks: Checks) -> Answers:
    """``said`` with the rest asked for, or by default; what is asked for is held to ``checks`` at once."""
    from launcher.draft import Answers, on_slurm

    defaults = {field.name: field.default for field in fields(Answers)}
    defaults |= {"model": None, "slurm": on_slurm()}
    for key, question in QUESTIONS.items():
        if said[key] is not None or (key in ON_SLURM and not said["slurm"]):
            said[key] = defaults[key] if said[key] is None else said[key]
        elif not asks:
            said[key] = defaults[key]
        elif key == "slurm":
            said[key] = typer.confirm(question, default=bool(defaults[key]))
        else:
            said[key] = _ask(question, defaults[key], checks.get(key))
    if not said["model"]:
        raise UsageError("which model?", fix="launcher init --model, a directory or a hub id")
    return Answers(**said)


def _ask(question: str, default: Any, check: Callable[[str], None] | None) -> Any:
    """The first answer that ``check`` lets pass."""
    while True:
        shown = default not in (None, "")
        answer = typer.prompt(question, default=default, show_default=shown)
        try:
            if check is not None:
                check(answer)
        except LauncherError as error:
            typer.echo(clean(str(error)), err=True)
        else:
            return answer


def _model(spec: Path, name: str) -> None:
    from launcher.draft import check_model

    check_model(spec, name)


def _prompts(spec: Path, name: str, example: bool, asks: bool) -> None:
    from launcher.draft import write_example

    path = spec.parent / Path(name).expanduser()
    if path.exists() or any(letter in name for letter in "*?["):
        return
    if example or (asks and typer.confirm(f"{path} is not there; write three examples")):
        write_example(path)
    else:
        fix = "--example writes three there; --input names others"
        raise UsageError("there are no prompts", where=str(path), fix=fix)


def _write(spec: Path, answers: Answers, as_json: bool) -> None:
    from launcher.draft import write_spec
    from launcher.report.table import plan_table

    planned = write_spec(spec, answers)
    command = f"launcher {'submit' if answers.slurm else 'run'} {spec}"
    value = {"spec": str(spec), "next": command, "plan": planned.plan.model_dump(mode="json")}
    out(value, as_json, plan_table(planned.plan))
    out(None, as_json, f"\nwrote {spec}; next: {command}")
