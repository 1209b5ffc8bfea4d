"""pydantic's errors as problems with a place in the spec and the nearest valid name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from launcher.errors import Problem
from launcher.job.nodes import MAX_PROBLEMS, Node
from launcher.job.typed import section_of

_PREFIX = re.compile(r"^(?:[A-Z]\w+|Value error,) (?=should|is )|^Value error, ")
_QUOTED = re.compile(r"'([^']*)'")


def explain(
    error: ValidationError, root: Node, model: type[BaseModel], prefix: tuple[str, ...] = ()
) -> list[Problem]:
    """One problem for each mistake that validating ``root`` as ``model`` found.

    ``prefix`` is where ``root`` stands in the spec: ("parallel", "options").
    """
    found: dict[tuple[Any, ...], _Mistake] = {}
    for detail in error.errors(include_url=False, include_context=False):
        mistake = _Mistake(dict(detail), root, model, prefix)
        # The members of a union fail one by one; to a person that is one mistake.
        found.setdefault(mistake.key, mistake).messages.append(mistake.message)
        if len(found) >= MAX_PROBLEMS:
            break
    deeper = {key[:n] for key in found for n in range(1, len(key))}
    return [mistake.problem() for key, mistake in found.items() if key not in deeper]


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant."""
    if len(word) > 64:
        return None
    by_lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[close[0]] if close else None


def did_you_mean(word: str, names: list[str]) -> str | None:
    """A hint: the nearest name, or all of them where there are few."""
    name = nearest(word, names)
    if name:
        return f"did you mean `{name}`?"
    return "known here: " + ", ".join(names) if 0 < len(names) <= 16 else None


class _Mistake:
    """One of pydantic's errors, with the node that it is about."""

    def __init__(
        self, detail: dict[str, Any], root: Node, model: type[BaseModel], prefix: tuple[str, ...]
    ) -> None:
        self.type, self.input, self.model = detail["type"], detail.get("input"), model
        self.message = str(detail["msg"])
        self.messages: list[str] = []
        self.node, self.parent = root, root
        self.owner: type[BaseModel] | None = None
        self.section: type[BaseModel] | None = model
        path: list[str] = []
        for part in detail["loc"]:
            child = self.node.child(part)
            if child is None:
                continue  # a missing key, or the name of a union's member
            self.parent, self.node = self.node, child
            self._descend(str(part), is_key=isinstance(self.parent.value, dict))
            path.append(str(part))
        self.last = str(detail["loc"][-1]) if detail["loc"] else ""
        if self.type == "missing" and path[-1:] != [self.last]:  # it may be there, as null
            path.append(self.last)
        self.name = ".".join((*prefix, *path))
        self.key = tuple(path)

    def _descend(self, part: str, is_key: bool) -> None:
        self.owner = self.section
        field = self.section.model_fields.get(part) if self.section and is_key else None
        self.section = section_of(field.annotation) if field else None

    def problem(self) -> Problem:
        if self.type == "missing":
            return Problem(self.node.key_where, f"`{self.name}` is missing")
        if self.type == "extra_forbidden":
            return Problem(self.node.key_where, f"unknown key `{self.name[:120]}`", self._known())
        text = _sentence(self.messages)
        if isinstance(self.input, str | int | float) and not isinstance(
            self.node.value, dict | list
        ):
            text += f", not {_shown(self.node.value)}"
        return Problem(self.node.where, f"`{self.name}` {text}", self._value_hint())

    def _known(self) -> str | None:
        names = list(self.owner.model_fields) if self.owner else []
        elsewhere = getattr(self.owner, "elsewhere", {})
        plain = self.last.replace("-", "_")
        if plain in elsewhere:
            return str(elsewhere[plain])
        if not nearest(self.last, names):
            for section, field in self.model.model_fields.items():
                inner = section_of(field.annotation)
                if inner and self.last in inner.model_fields:
                    return f"`{self.last}` belongs to `{section}`"
        return did_you_mean(self.last, names)

    def _value_hint(self) -> str | None:
        if isinstance(self.node.value, str):
            name = nearest(self.node.value, _QUOTED.findall(" ".join(self.messages)))
            if name:
                return f"did you mean `{name}`?"
        if self.type == "string_type" and isinstance(self.input, int | float):
            return "quote it"
        return None


def _sentence(messages: list[str]) -> str:
    """What pydantic says of each member of a union, as one sentence without its subject."""
    parts = []
    for message in messages:
        text = _PREFIX.sub("", message)
        text = re.sub(r"valid dictionary or instance of \w+", "mapping", text)
        text = text.replace("valid dictionary", "mapping").replace("valid list", "list")
        text = re.sub(r", unable to parse string as an? \w+", "", text)
        if text not in parts:
            parts.append(text)
    return " or ".join([parts[0], *(part.removeprefix("should be ") for part in parts[1:])])


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
