"""A job spec from its file: read strictly, overridden, filled from its site, checked, resolved.

Every mistake is reported at once, each with its place and what was probably meant.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from launcher.errors import LauncherError, Problem, SpecError
from launcher.job import accelerate, tasks
from launcher.job.nodes import MAX_VALUES, Node, parse
from launcher.job.overrides import apply_overrides
from launcher.job.paths import resolve_paths
from launcher.job.problems import explain
from launcher.job.redact import SECRET, hidden_problems, redact, secret_problems
from launcher.job.site import apply_site
from launcher.job.slurm import SlurmSpec
from launcher.job.source import MAX_BYTES, read_text
from launcher.job.spec import JobSpec
from launcher.job.typed import looks_like_number, typed

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class LoadedSpec:
    """A spec that was read: what it says, the file's text as given, and where everything stands."""

    spec: JobSpec
    path: Path
    text: str
    root: Node

    def where(self, name: str) -> str:
        """The place of ``model.path`` and the like; of what surrounds it if it is not given."""
        return self._nearest(name).where

    def placed(self, error: LauncherError) -> LauncherError:
        """``error``, its ``where`` the place of the field that it names, if it names one."""
        if error.where and error.where.partition(".")[0] in JobSpec.model_fields:
            error.where = self.where(error.where)
        return error

    def check_section(self, name: str, model: type[Model], value: Any) -> Model:
        """``value``, which stands at ``name`` (``parallel.options``), as ``model``.

        Raises SpecError with the places of all mistakes.
        """
        try:
            return model.model_validate(value)
        except ValidationError as error:
            problems = explain(error, self._nearest(name), model, tuple(name.split(".")))
            raise self.refused(problems) from None

    def refused(self, problems: list[Problem]) -> SpecError:
        """The error that tells all of them."""
        return _report(problems)

    def _nearest(self, name: str) -> Node:
        node = self.root
        for part in name.split("."):
            node = node.child(part) or node
        return node


def load_spec(path: Path | str, overrides: Sequence[str] = ()) -> LoadedSpec:
    """The spec in a YAML file with ``a.b=value`` overrides, its site and its paths resolved.

    Raises UsageError if there is no such file, SpecError with all mistakes otherwise.
    """
    path = Path(path)
    text = read_text(path)
    try:
        spec, root = _read(text, path, overrides)
    except SpecError as error:
        raise _report(error.problems) from None
    return LoadedSpec(spec, path.absolute(), text, root)


def loaded_from(spec: JobSpec, overrides: Sequence[str] = ()) -> LoadedSpec:
    """A spec that was made in Python, as if the working directory had a file of what was said in it.

    Raises SpecError.
    """
    said = spec.model_dump(mode="json", exclude_unset=True, exclude=set(tasks.foreign(spec.task)))
    text, path = _yaml(said), Path("JobSpec")
    try:
        whole, root = _read(text, path, overrides)
    except SpecError as error:
        raise _report(error.problems) from None
    return LoadedSpec(whole, path.absolute(), text, root)


def load_resolved(path: Path | str) -> JobSpec:
    """A spec that ``dump_spec`` wrote: nothing is left to resolve in it."""
    # Longer than what it was made of: its paths are absolute, and every default is in it.
    text = read_text(Path(path), 64 * MAX_BYTES)
    root, problems = parse(text, str(path), 2 * MAX_VALUES)
    return _told(root, typed(root, JobSpec, problems), problems)


def checked(root: Node, problems: list[Problem]) -> dict[str, Any]:
    """The fields of a JobSpec that ``root`` holds, nothing resolved. Raises SpecError with ``problems`` and all others."""
    data: dict[str, Any] = typed(root, JobSpec, problems)
    _told(root, data, problems)
    return data


def _told(root: Node, data: Any, problems: list[Problem]) -> JobSpec:
    try:
        return _validated(root, data, problems)
    except SpecError as error:
        raise _report(error.problems) from None


def _read(text: str, path: Path, overrides: Sequence[str]) -> tuple[JobSpec, Node]:
    root, problems = parse(text, str(path))
    problems += secret_problems(text, str(path))
    problems += apply_overrides(root, overrides)
    problems += apply_site(root)
    if not any(problem.what == SECRET for problem in problems):
        problems += hidden_problems(root)
    data = resolve_paths(typed(root, JobSpec, problems), path.absolute().parent)
    if data.get("task") == tasks.SCRIPT:
        problems += accelerate.mistakes(root, data.get("accelerate"))
    return _validated(root, data, problems), root


def _validated(root: Node, data: Any, problems: list[Problem]) -> JobSpec:
    """``data`` as a spec; SpecError with what is wrong with it and ``problems``, once per place."""
    known = {problem.where for problem in problems if problem.what != SECRET}
    problems += tasks.misplaced(root, data)
    try:
        spec = JobSpec.model_validate(data)
    except ValidationError as error:
        problems += [p for p in explain(error, root, JobSpec) if p.where not in known]
    if problems:
        raise SpecError(problems)
    return spec


def dump_spec(spec: JobSpec) -> str:
    """job.yaml: the whole spec as YAML, which loads to an equal one."""
    data = spec.model_dump(mode="json", exclude=set(tasks.foreign(spec.task)))
    # An option of sbatch that nobody asked for is left out; the site's were filled in long ago.
    asked = {key: value for key, value in data["slurm"].items() if value is not None}
    data["slurm"] = {"site": None} | asked
    return _yaml(data)


def _yaml(data: dict[str, Any]) -> str:
    return yaml.dump(
        data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**9, indent=2
    )


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a job spec, for editors."""
    schema = JobSpec.model_json_schema()
    slurm = schema["$defs"][SlurmSpec.__name__]["properties"]
    slurm |= {name.replace("_", "-"): rule for name, rule in slurm.items()}
    needed = schema.pop("required")
    is_script = {"task": {"const": tasks.SCRIPT}}
    schema["anyOf"] = [
        {"properties": is_script, "required": ["name", "task", "script"]},
        {"required": needed},
    ]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


class _Dumper(yaml.SafeDumper):
    """Quotes every text that some reader of YAML could take for something else."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    simple = re.fullmatch(r"[A-Za-z/][A-Za-z0-9_./-]*", text) and not looks_like_number(text)
    style = None if simple else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def _report(problems: list[Problem]) -> SpecError:
    """All of them in the order of the file, overrides last, without secrets that they repeat."""
    clean = [
        Problem(redact(p.where), redact(p.what), redact(p.hint) if p.hint else None)
        for p in problems
    ]
    return SpecError(sorted(clean, key=_order))


def _order(problem: Problem) -> tuple[bool, str, int, int]:
    match = re.fullmatch(r"(.*):(\d+):(\d+)", problem.where, re.DOTALL)
    if not match:
        return True, "", 0, 0
    return False, match[1], int(match[2]), int(match[3])
