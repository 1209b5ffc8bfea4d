"""The text of scalars as values of the types that their fields have.

So ``name: 0777`` and ``time: 12:00:00`` stay text, ``temperature: 1e-3`` is a number and
``trust_remote_code: no`` is False, quoted or not. Where a field takes anything (a strategy's
options), YAML 1.2 decides; what YAML versions disagree about is refused or stays text.
"""

from __future__ import annotations

import re
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from launcher.errors import Problem
from launcher.job.nodes import Node

_INT = re.compile(r"[-+]?(?:0|[1-9](?:_?[0-9])*)")
_FLOAT = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_OTHER_BASE = re.compile(r"[-+]?0(?:[0-9_]+|[xX][0-9a-fA-F_]+|[oO][0-7_]+|[bB][01_]+)")
_TRUE, _FALSE = {"true", "yes", "on"}, {"false", "no", "off"}
_LONGEST_NUMBER = 40


def kinds(annotation: Any) -> list[Any]:
    """The members of a field's type: unions flattened, Annotated taken off."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return kinds(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [kind for member in get_args(annotation) for kind in kinds(member)]
    return [annotation]


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The class of the mapping that a field holds, if it has one."""
    for kind in kinds(annotation):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def typed(node: Node, annotation: Any, problems: list[Problem]) -> Any:
    """Plain data (dict, list, str, int, float, bool, None) for a field of type ``annotation``.

    A field that is left empty, or null, and can't be None is left out: its default holds.
    """
    if isinstance(node.value, dict):
        section = section_of(annotation)
        fields = section.model_fields if section else {}
        item = _inner(annotation, dict)
        return {
            key: typed(child, fields[key].annotation if key in fields else item, problems)
            for key, child in node.value.items()
            if not (key in fields and child.is_null() and not _optional(fields[key].annotation))
        }
    if isinstance(node.value, list):
        item = _inner(annotation, list)
        return [typed(child, item, problems) for child in node.value]
    return _scalar(node, node.value, annotation, problems)


def _optional(annotation: Any) -> bool:
    return any(kind in (Any, type(None)) for kind in kinds(annotation))


def _inner(annotation: Any, container: type) -> Any:
    """The type of the values in the field's list or mapping; Any where it does not say."""
    for kind in kinds(annotation):
        if get_origin(kind) is container:
            return get_args(kind)[-1]
    return Any


def _scalar(node: Node, text: str, annotation: Any, problems: list[Problem]) -> Any:
    wanted = kinds(annotation)
    if node.is_null():
        return None
    anything = Any in wanted
    number = anything or int in wanted or float in wanted
    flag = anything or bool in wanted
    if not (number or flag) or _is_choice(text, wanted):
        return text
    if not node.plain and (anything or str in wanted):
        return text
    if flag and text.lower() in (_TRUE | _FALSE):
        if anything and text.lower() not in {"true", "false"}:
            return text  # YAML 1.2; an option that is a flag understands it as well
        return text.lower() in _TRUE
    return _number(node, text, problems) if number else text


def _is_choice(text: str, wanted: list[Any]) -> bool:
    return any(get_origin(kind) is Literal and text in get_args(kind) for kind in wanted)


def _number(node: Node, text: str, problems: list[Problem]) -> Any:
    if not looks_like_number(text):
        return text
    if len(text) > _LONGEST_NUMBER:
        problems.append(Problem(node.where, f"a number of {len(text)} characters"))
        return 0
    if _OTHER_BASE.fullmatch(text):
        plain = text.lstrip("+-0_") or "0"
        hint = f"write {plain} for the number, or quote it for the text"
        problems.append(
            Problem(node.where, f"{text} means different numbers to different readers", hint)
        )
        return 0
    return int(text.replace("_", "")) if _INT.fullmatch(text) else float(text)


def looks_like_number(text: str) -> bool:
    """Whether a plain scalar with this text could be read as a number."""
    return any(form.fullmatch(text) for form in (_INT, _FLOAT, _OTHER_BASE))
