"""A spec as nodes: its values as text, each with the place where it stands.

YAML is read strictly: one document of mappings, lists and scalars. Types come later (typed.py),
from the fields that the values are for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from launcher.errors import Problem, SpecError

MAX_DEPTH = 50
MAX_PROBLEMS = 50
MAX_VALUES = 10_000
MAX_TEXT = 1 << 16  # characters of a value

# libyaml where PyYAML was built with it: a hostile megabyte costs milliseconds, not seconds.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# What YAML does not allow in a stream; PyYAML would report it without a line.
_UNPRINTABLE = re.compile(
    "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", re.UNICODE
)
# What an escape in double quotes could still bring in, and no file name or output can hold.
_UNWRITABLE = re.compile("[\x00\ud800-\udfff]")


@dataclass
class Node:
    """A value; ``where`` is its place (file:line:column, or an override), ``key_where`` its key's.

    ``plain`` is True for a scalar without quotes.
    """

    value: str | list[Node] | dict[str, Node]
    where: str
    key_where: str
    plain: bool = False

    def child(self, key: str | int) -> Node | None:
        """The value behind ``key`` of a mapping or at an index of a list, if there is one."""
        if isinstance(self.value, dict):
            return self.value.get(str(key))
        if isinstance(self.value, list) and isinstance(key, int) and key < len(self.value):
            return self.value[key]
        return None

    def is_null(self) -> bool:
        """Whether this is YAML's null, or nothing at all."""
        return self.plain and self.value in ("", "~", "null", "Null", "NULL")


def place(name: str, text: str, offset: int) -> str:
    """``file:line:column`` of a character of ``text``."""
    line, start = text.count("\n", 0, offset) + 1, text.rfind("\n", 0, offset)
    return f"{name}:{line}:{offset - start}"


def parse(text: str, name: str, most: int = MAX_VALUES) -> tuple[Node, list[Problem]]:
    """The mapping that ``text``, of ``most`` values at most, holds, and what is wrong with it.

    Raises SpecError where nothing more can be read behind the mistake.
    """
    bad = _UNPRINTABLE.search(text)
    if bad:
        what = f"the character U+{ord(bad.group()):04X} is not allowed"
        raise SpecError([Problem(place(name, text, bad.start()), what)])
    reader = _Reader(text, lambda mark: f"{name}:{mark.line + 1}:{mark.column + 1}", most)
    root = reader.document(f"{name}:1:1")
    if root.is_null():
        root.value = {}
    if not isinstance(root.value, dict):
        reader.problem(root.where, "a spec is a mapping", "lines of the form `name: my-job`")
        root.value = {}
    return root, reader.problems


def parse_flow(text: str, label: str) -> tuple[Node, list[Problem]]:
    """The value of an override in YAML's flow form; ``label`` is its place."""
    reader = _Reader(text, lambda _: label)
    return reader.document(label), reader.problems


class _Reader:
    """Makes nodes of PyYAML's events, so that no alias is followed and no tag obeyed."""

    def __init__(self, text: str, where: Callable[[Any], str], most: int = MAX_VALUES) -> None:
        self.problems: list[Problem] = []
        self._where = where
        self._values, self._most = 0, most
        self._events = self._read(text)

    def problem(self, where: str, what: str, hint: str | None = None) -> None:
        """Note a mistake; gives up when there are too many for anybody to read."""
        self.problems.append(Problem(where, what, hint))
        if len(self.problems) >= MAX_PROBLEMS:
            raise SpecError([*self.problems, Problem(where, "too many mistakes, stopping here")])

    def document(self, start: str) -> Node:
        """The only document of the stream; an empty scalar if there is none."""
        root: Node | None = None
        for event in self._events:
            if isinstance(event, yaml.NodeEvent):
                root = self._node(event, start, 0)
            elif isinstance(event, yaml.DocumentStartEvent) and root is not None:
                self.problem(
                    self._where(event.start_mark),
                    "a second document begins here",
                    "a spec is one document: remove the line with ---",
                )
                break
        return root or Node("", start, start, plain=True)

    def _read(self, text: str) -> Iterator[Any]:
        try:
            yield from yaml.parse(text, Loader=_Loader)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = self._where(mark) if mark else "the text"
            what = str(getattr(error, "problem", None) or "this can't be read")
            problem = Problem(where, f"not YAML: {what}", _syntax_hint(what))
            raise SpecError([*self.problems, problem]) from None

    def _node(self, event: Any, key_where: str, depth: int) -> Node:
        where = self._where(event.start_mark)
        if depth > MAX_DEPTH:
            raise SpecError(
                [*self.problems, Problem(where, f"nested over {MAX_DEPTH} levels deep")]
            )
        if isinstance(event, yaml.AliasEvent):
            hint = "quote a value that begins with *"
            self.problem(where, f"aliases (*{str(event.anchor)[:40]}) are not allowed", hint)
            return Node("", where, key_where)
        self._values += 1
        if self._values > self._most:
            raise SpecError([*self.problems, Problem(where, f"more than {self._most} values")])
        self._check_properties(event, where)
        if isinstance(event, yaml.ScalarEvent):
            if len(event.value) > MAX_TEXT:
                self.problem(
                    where, f"a value of over {MAX_TEXT:,} characters", "name a file instead"
                )
                return Node("", where, key_where, plain=not event.style)
            if _UNWRITABLE.search(event.value):
                self.problem(where, "a character that no file can hold is escaped here")
            return Node(event.value, where, key_where, plain=not event.style)
        if isinstance(event, yaml.SequenceStartEvent):
            return Node(self._list(depth), where, key_where)
        return Node(self._mapping(depth), where, key_where)

    def _check_properties(self, event: Any, where: str) -> None:
        if event.anchor is not None:
            hint = "quote a value that begins with &"
            self.problem(where, f"anchors (&{event.anchor[:40]}) are not allowed", hint)
        if event.tag is not None:
            hint = "types come from the fields; quote a value that begins with !"
            self.problem(where, f"tags ({event.tag[:40]}) are not allowed", hint)

    def _list(self, depth: int) -> list[Node]:
        items = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._node(event, self._where(event.start_mark), depth + 1))
        return items

    def _mapping(self, depth: int) -> dict[str, Node]:
        items: dict[str, Node] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            where = self._where(event.start_mark)
            key = self._node(event, where, depth + 1)
            value = self._node(next(self._events), where, depth + 1)
            if not isinstance(key.value, str):
                self.problem(where, "a key is text", "quote a value that begins with { or [")
            elif key.value in items:
                first = items[key.value].key_where
                self.problem(where, f"`{key.value[:80]}` is given twice; first at {first}")
            else:
                items[key.value] = value
        return items


def _syntax_hint(problem: str) -> str | None:
    if "mapping values are not allowed" in problem:
        return "quote a value that holds a colon and a space"
    if "cannot start any token" in problem or "could not find expected" in problem:
        return "quote a value with special characters, and indent with spaces, not tabs"
    return None
