"""Commands around a first spec: doctor, convert, schema."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launcher.cli.app import Json, app
from launcher.console import out, say


@app.command(
    epilog="Example: launcher doctor; on compute nodes: srun --nodes 2 launcher doctor --node"
)
def doctor(
    node: Annotated[
        bool, typer.Option("--node", help="examine a compute node, or the nodes of an srun")
    ] = False,
    folder: Annotated[Path, typer.Option("--dir", help="where runs go")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """Look for what would hurt a run here, and say what to do about it; exit 3 if there is a problem."""
    from launcher.doctor import examine
    from launcher.report.findings import findings_table

    found = examine.compute_node(folder) if node else examine.login_node(folder)
    if found is None:
        return  # the first node speaks for all
    document = examine.as_document(found, "node" if node else "login")
    out(document, as_json, findings_table(document["findings"]))
    if not document["ok"]:
        raise typer.Exit(3)


@app.command(epilog="Example: launcher convert downloads/old-model models/old-model")
def convert(
    source: Annotated[Path, typer.Argument(help="the folder of a model with pickled weights")],
    target: Annotated[Path, typer.Argument(help="the folder to make")],
    as_json: Json = False,
) -> None:
    """Make safetensors of pickled weights (.bin); code that is hidden in them does not run."""
    from launcher.model.convert import convert as convert_weights

    made = convert_weights(source, target, say(as_json))
    told = {"path": str(target), "parameters": made.parameters, "tensors": len(made.tensors)}
    out(told, as_json, f"{len(made.tensors)} tensors: {target}")


@app.command(epilog="Example: launcher schema > job.schema.json")
def schema(as_json: Json = False) -> None:
    """Print the JSON Schema of the job spec, for editors."""
    from launcher.job.load import json_schema

    out(json_schema(), True)
