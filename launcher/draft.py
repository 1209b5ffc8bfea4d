"""Draft: a first spec out of a few answers, planned before it is written."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from launcher import environ, prepare
from launcher.disk import publish, write_json
from launcher.errors import DoesNotFit, Problem, SpecError, UsageError
from launcher.job.load import json_schema
from launcher.job.paths import resolve_paths
from launcher.job.spec import ModelSpec
from launcher.plan.choose import best

EXAMPLE = ("What is a pipeline bubble?", "Name three uses of a KV cache.", "Why do queues form?")


@dataclass(frozen=True)
class Answers:
    """What `launcher init` asks. Paths are relative to the spec; ``gpus_per_node`` 0 means CPU ranks.

    Where ``slurm`` is not set the spec is for this machine, with the GPUs that it has.
    """

    model: str
    input: str = "prompts.jsonl"
    max_new_tokens: int = 256
    slurm: bool = False
    nodes: int = 1
    gpus_per_node: int = 4
    gpu: str = "auto"
    partition: str = ""
    account: str = ""
    time: str = "12:00:00"


def on_slurm() -> bool:
    """Whether jobs can be submitted from this machine."""
    return shutil.which("sbatch") is not None


def write_example(path: Path) -> None:
    """Three prompts, for who has none yet. Raises UsageError if something is there."""
    if path.exists():
        raise UsageError("there is something already", where=str(path))
    rows = [{"id": str(number), "prompt": prompt} for number, prompt in enumerate(EXAMPLE)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def check_model(target: Path, model: str) -> None:
    """Whether there is such a model, of the hub or beside the spec. Raises PreflightError, UsageError."""
    found = resolve_paths({"model": {"path": model}}, target.absolute().parent)
    prepare.check_model(ModelSpec(**found["model"]))


def write_spec(target: Path, answers: Answers) -> prepare.Planned:
    """Write the spec at ``target`` if it plans: with as many copies of the model as use the machines best.

    Raises UsageError, SpecError or PreflightError for answers that make no spec, DoesNotFit for one that does not
    fit; nothing is written then.
    """
    schema = _schema()
    target.parent.mkdir(parents=True, exist_ok=True)
    with publish(target) as draft, _named(draft, target):
        found: list[tuple[int, prepare.Planned]] = []
        for copies in _copies(answers):
            draft.write_text(compose(target.stem, answers, copies, schema), encoding="utf-8")
            with contextlib.suppress(UsageError) if found else contextlib.nullcontext():
                found.append((copies, _plan(draft, answers)))
        plans = [planned.plan for _, planned in found]
        copies, planned = found[plans.index(best(plans))]
        if not planned.plan.fits:
            fix = "more or larger GPUs, or a smaller model; nothing was written"
            raise DoesNotFit("; ".join(planned.plan.reasons), fix=fix)
        draft.write_text(compose(target.stem, answers, copies, schema), encoding="utf-8")
    return planned


def compose(stem: str, answers: Answers, copies: int, schema: Path | None) -> str:
    """The spec's text; ``stem`` is its file's name, which becomes the job's."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip(".-")[:64] or "job"
    lines = [f"# yaml-language-server: $schema={schema}"] if schema else []
    lines += [
        f"#     launcher plan {stem}.yaml",
        f"#     launcher {'submit' if answers.slurm else 'run'} {stem}.yaml",
        f"name: {_text(name)}",
        "model:",
        f"  path: {_text(answers.model)}",
        "parallel:",
        "  strategy: auto # the plan chooses how a copy of the model is split",
        f"  replicas: {copies} # copies of the model",
        "input:",
        f"  path: {_text(answers.input)}",
        "generation:",
        f"  max_new_tokens: {answers.max_new_tokens}",
    ]
    if answers.slurm:
        lines += [*_resources(answers), *_slurm(answers)]
    return "\n".join(lines) + "\n"


def _resources(answers: Answers) -> list[str]:
    lines = ["resources:", f"  nodes: {answers.nodes}"]
    if not answers.gpus_per_node:
        return [*lines, "  device: cpu"]
    lines.append(f"  gpus_per_node: {answers.gpus_per_node}")
    return lines + ([f"  gpu: {_text(answers.gpu)}"] if answers.gpu != "auto" else [])


def _slurm(answers: Answers) -> list[str]:
    asked = {"partition": answers.partition, "account": answers.account, "time": answers.time}
    given = [f"  {key}: {_text(value)}" for key, value in asked.items() if value]
    return ["slurm:", *given] if given else []


def _copies(answers: Answers) -> list[int]:
    """Numbers of copies to try: those that share the GPUs out evenly, one first."""
    gpus = answers.nodes * answers.gpus_per_node if answers.slurm else 0
    return [1, *(n for n in range(2, gpus + 1) if gpus % n == 0)]


def _plan(draft: Path, answers: Answers) -> prepare.Planned:
    return prepare.plan_job(draft, [], here=not answers.slurm, say=lambda _: None, fetch=False)


@contextlib.contextmanager
def _named(draft: Path, target: Path) -> Iterator[None]:
    """Mistakes in the draft are told as those of the file that it would become."""
    try:
        yield
    except SpecError as error:
        old, new = str(draft), str(target)
        problems = [Problem(p.where.replace(old, new), p.what, p.hint) for p in error.problems]
        raise SpecError(problems, fix="other answers; nothing was written") from None


def _schema() -> Path | None:
    """The schema's file, for editors, rewritten; None where the user's folder can't be written."""
    path = environ.config_home() / "job.schema.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, json_schema())
    except OSError:
        return None
    return path


def _text(value: str) -> str:
    """A text as YAML reads it: a JSON text is one."""
    plain = re.fullmatch(r"[A-Za-z/][A-Za-z0-9_./-]*", value) and yaml.safe_load(value) == value
    return value if plain else json.dumps(value, ensure_ascii=False)
