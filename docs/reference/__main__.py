"""Writes the pages of this folder from the code: `python -m docs.reference`. A test holds that they are what it makes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel, TypeAdapter

from launcher import errors, strategies
from launcher.cli import app
from launcher.input.codes import CODES
from launcher.job.load import json_schema
from launcher.job.section import Seconds
from launcher.job.slurm import SlurmSpec
from launcher.job.spec import JobSpec
from launcher.plan.sizes import Bytes

HERE = Path(__file__).parent
MADE = "<!-- Made from the code by `python -m docs.reference`: change it there. -->\n"
DURATION = TypeAdapter(Seconds).json_schema()["anyOf"]
SIZE = TypeAdapter(Bytes).json_schema()
OPEN = 2**31 - 1  # a limit that is none to a person
Schema = dict[str, Any]


def pages() -> dict[str, str]:
    """The text of every page by file name."""
    made = {"spec.md": spec_page(), "commands.md": commands_page(), "errors.md": errors_page()}
    return {name: MADE + "\n" + "\n".join(lines).strip() + "\n" for name, lines in made.items()}


def spec_page() -> list[str]:
    """The job spec: a table per section, then what each strategy's options may be."""
    schema = json_schema()
    lines = [
        "# The job spec",
        "",
        "A YAML file; unknown keys are errors. `launcher schema` prints the same as JSON Schema. On the command line",
        "`section.key=value` replaces a value. Relative paths begin at the spec, runs (`output.dir`) at the working directory.",
        "",
        *table(schema["properties"], set(schema["anyOf"][1]["required"]), schema["$defs"]),
    ]
    for name, field in JobSpec.model_fields.items():
        section = section_of(field.annotation)
        if section is not None:
            lines += ["", f"## {name}", "", said(section), ""]
            lines += slurm(schema) if section is SlurmSpec else of_model(section)
        if name == "parallel":
            lines += of_strategies()
        if name == "accelerate":
            lines += ["", "## accelerate", "", ACCELERATE]
    return lines


ACCELERATE = (
    "Options of the accelerate that is installed, under its own names; [scripts](../scripts.md) lists the sections. "
    "They are checked before anything is queued."
)


def section_of(annotation: Any) -> type[BaseModel] | None:
    kinds = [annotation, *getattr(annotation, "__args__", ())]
    models = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return models[0] if models else None


def of_model(model: type[BaseModel]) -> list[str]:
    schema = model.model_json_schema()
    if not schema.get("properties"):
        return ["No options."]
    return table(schema["properties"], set(schema.get("required", ())), schema.get("$defs", {}))


def of_strategies() -> list[str]:
    lines = []
    for name in strategies.names():
        module = strategies.get(name)
        lines += ["", f"### `strategy: {name}`", "", said(module), ""]
        lines += ["Its `parallel.options`:", "", *of_model(module.Options)]
    return lines


def slurm(schema: Schema) -> list[str]:
    """Our own keys as a table, sbatch's as another, and what is said elsewhere."""
    fields, own = schema["$defs"]["SlurmSpec"]["properties"], SlurmSpec.model_fields
    ours = {name: fields[name] for name in own if own[name].description}
    lines = table(ours, set(), schema["$defs"])
    lines += ["", "sbatch's own, as its manual has them:", "", "| key | what |", "| --- | --- |"]
    lines += [
        f"| `{name}` | {kind(fields[name], {})} |" for name in own if not own[name].description
    ]
    lines += ["", "Said elsewhere:", "", "| sbatch's | here |", "| --- | --- |"]
    return lines + [f"| `{name}` | {says} |" for name, says in SlurmSpec.elsewhere.items()]


def table(fields: Schema, needed: set[str], defs: Schema) -> list[str]:
    """A row for each field: key, what it may be, its default, what it means."""
    lines = ["| key | what | default | |", "| --- | --- | --- | --- |"]
    for name, field in fields.items():
        default = "needed" if name in needed else literal(field.get("default"))
        says = field.get("description", "")
        if "$ref" in field or any("$ref" in kind for kind in field.get("anyOf", ())):
            default, says = "needed" if name in needed else "", f"[section](#{name})"
        lines.append(f"| `{name}` | {kind(field, defs)} | {default} | {says} |")
    return lines


def kind(field: Schema, defs: Schema) -> str:
    """What a value may be, in words."""
    if "$ref" in field:
        return "section"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if "anyOf" not in field:
        return simple(field, defs)
    kinds = [each for each in field["anyOf"] if each.get("type") != "null"]
    if kinds == DURATION:
        return "duration"
    return " or ".join(dict.fromkeys(kind(each, defs) for each in kinds))


def simple(field: Schema, defs: Schema) -> str:
    if SIZE.items() <= field.items():
        return "size"
    words = {"boolean": "`true`, `false`", "string": "text", "object": "mapping"}
    words |= {"integer": "whole number" + between(field), "number": "number" + between(field)}
    inner = field.get("items", field.get("additionalProperties"))
    if isinstance(inner, dict):
        return f"{'list' if 'items' in field else 'mapping to'}: {kind(inner, defs)}"
    return words[field["type"]]


def between(field: Schema) -> str:
    low, high = field.get("minimum"), field.get("maximum", OPEN)
    over, under = field.get("exclusiveMinimum"), field.get("exclusiveMaximum", OPEN)
    words = []
    if over is not None or (low is not None and low > -OPEN):
        words.append(f"from {low:g}" if over is None else f"over {over:g}")
    if high < OPEN or under < OPEN:
        words.append(f"to {high:g}" if high < OPEN else f"under {under:g}")
    return f" {' '.join(words)}" if words else ""


def literal(value: Any) -> str:
    """A default as a spec would say it; nothing for none."""
    if value is None or value in ({}, []):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def said(thing: Any) -> str:
    """The first paragraph of a docstring, in one line."""
    return " ".join((thing.__doc__ or "").strip().partition("\n\n")[0].split())


def commands_page() -> list[str]:
    """Every command with its arguments, options and an example."""
    lines = [
        "# Commands",
        "",
        "SPEC is a job spec, KEY=VALUE replaces a value of it (`parallel.stages=4`). RUN is a directory, a name, a Slurm job id, or",
        "nothing for the latest. With `--json` a command prints one JSON document and nothing else: [the error](errors.md), where it ends with",
        "one. `launcher` alone and its group `bench` only list their commands, and have no `--json`. How a command ends is told by its",
        "[exit code](errors.md).",
    ]
    for path, command in walk(typer.main.get_command(app), "launcher"):
        lines += ["", f"## {path}", "", paragraph(command.help), "", *usage(path, command)]
        if command.epilog:
            lines += ["", paragraph(command.epilog)]
    return lines


def walk(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        inner = f"{path} {name}"
        if hasattr(command, "commands"):
            yield from walk(command, inner)
        else:
            yield inner, command


def usage(path: str, command: Any) -> list[str]:
    """The line of how it is called, and a table of what it takes."""
    taken = [parameter for parameter in command.params if parameter.name != "help"]
    arguments = [parameter for parameter in taken if parameter.param_type_name == "argument"]
    options = [parameter for parameter in taken if parameter.param_type_name == "option"]
    words = [path, *(metavar(argument) for argument in arguments), "[OPTION]..."]
    lines = ["```text", " ".join(words), "```", "", "| | | default |", "| --- | --- | --- |"]
    for each in arguments:
        lines.append(f"| `{metavar(each)}` | {each.help or ''} | {default(each)} |")
    for each in options:
        name = each.metavar or each.opts[-1].lstrip("-").upper()
        value = "" if each.is_flag else f" {name}"
        flags = ", ".join(f"`{flag}{value}`" for flag in (*each.opts, *each.secondary_opts))
        lines.append(f"| {flags} | {each.help or ''} | {default(each)} |")
    return lines


def metavar(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    return name if argument.required or name.startswith("[") else f"[{name}]"


def default(parameter: Any) -> str:
    value = parameter.default
    if parameter.required:
        return "needed"
    plain = isinstance(value, (str, int, float, Path)) and not isinstance(value, bool)
    return literal(value if isinstance(value, (int, float)) else str(value)) if plain else ""


def paragraph(text: str | None) -> str:
    return " ".join((text or "").split())


def errors_page() -> list[str]:
    """Exit codes, the errors that end a command, and why a row fails."""
    return [
        "# Exit codes and errors",
        "",
        *rows("| exit code | |", ((str(code), says) for code, says in errors.EXIT_CODES.items())),
        "",
        "## Errors",
        "",
        "Each says what, where, its likely cause and what to do next; with `--json` as `error`, `what`, `where`, `cause`, `fix` and",
        "`exit_code`. In Python they are raised: `from launcher import LauncherError`, the others from `launcher.errors`.",
        "",
        *rows("| error | exit code | |", map(error_row, family(errors.LauncherError))),
        "",
        "## Why a row fails",
        "",
        "A row that can't be answered is a line of `errors.jsonl` with one of these codes. They are stable.",
        "",
        *rows("| code | |", ((f"`{code}`", says) for code, says in CODES.items())),
    ]


def family(kind: type[errors.LauncherError]) -> Iterator[type[errors.LauncherError]]:
    """``kind`` and what is derived from it in errors.py."""
    yield kind
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from family(child)


def error_row(kind: type[errors.LauncherError]) -> tuple[str, str, str]:
    return f"`{kind.__name__}`", str(kind.exit_code), said(kind)


def rows(head: str, found: Iterable[tuple[str, ...]]) -> list[str]:
    rule = "|" + " --- |" * (head.count("|") - 1)
    return [head, rule, *(f"| {' | '.join(row)} |" for row in found)]


if __name__ == "__main__":
    for name, text in pages().items():
        (HERE / name).write_text(text, encoding="utf-8")
