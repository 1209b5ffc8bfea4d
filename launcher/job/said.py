"""A job spec that is made in Python: held to what its file would be held to, and refused in the same words."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel

from launcher.errors import Problem
from launcher.job import spec
from launcher.job.load import checked
from launcher.job.nodes import Node

SAID = {None: "null", True: "true", False: "false"}


class JobSpec(spec.JobSpec):
    """A job spec, of mappings and values with the names of the YAML file. Raises SpecError with all mistakes."""

    def __init__(self, **said: Any) -> None:
        problems: list[Problem] = []
        super().__init__(**checked(_node(said, "JobSpec", "JobSpec", problems), problems))


def _node(value: Any, name: str, section: str, problems: list[Problem]) -> Node:
    """``value``, which is called ``name`` and stands in ``section``, as the node that a file would have for it."""
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_unset=True)
    if isinstance(value, Mapping):
        inner = {
            str(key): _node(each, f"{name}.{key}", name, problems) for key, each in value.items()
        }
        return Node(inner, section, section)
    if isinstance(value, list | tuple):
        return Node([_node(each, name, section, problems) for each in value], section, section)
    if isinstance(value, str | PurePath):
        return Node(str(value), section, section)
    if value is None or isinstance(value, bool):
        return Node(SAID[value], section, section, plain=True)
    if not isinstance(value, Real):
        problems.append(Problem(section, f"{name} can't be a {type(value).__name__}"))
    return Node(str(value), section, section, plain=True)
