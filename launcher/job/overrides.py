"""``key=value`` from the command line: what it sets in a spec's nodes, with the same checks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from launcher.errors import Problem, SpecError
from launcher.job.nodes import MAX_DEPTH, Node, parse_flow
from launcher.job.redact import SECRET, SECRET_HINT, has_secret


def apply_overrides(root: Node, overrides: Sequence[str]) -> Iterator[Problem]:
    """Set each ``a.b=value`` in ``root``.

    A value that begins with [, {, " or ' is YAML in flow form and replaces what was there;
    anything else is one scalar, as it stands.
    """
    seen: set[str] = set()
    for override in overrides:
        label = f"override {override[:80]}"
        if has_secret(override):
            yield Problem(label, SECRET, SECRET_HINT)
        key, equals, text = override.partition("=")
        path = key.strip().split(".")
        if not equals or not all(path) or len(path) > MAX_DEPTH:
            yield Problem(label, "not of the form key.key=value")
        elif key in seen:
            yield Problem(label, f"`{key}` is given twice")
        else:
            yield from _set(root, path, text, label)
        seen.add(key)


def _set(root: Node, path: list[str], text: str, label: str) -> Iterator[Problem]:
    try:
        value, problems = _value(text.strip(), label)
    except SpecError as error:
        yield from error.problems
        return
    yield from problems
    node = root
    for depth, key in enumerate(path):
        if node.is_null():
            node.value = {}
        if not isinstance(node.value, dict):
            yield Problem(label, f"`{'.'.join(path[:depth])}` is not a mapping")
            return
        if depth == len(path) - 1:
            node.value[key] = value
        else:
            node = node.value.setdefault(key, Node({}, label, label))


def _value(text: str, label: str) -> tuple[Node, list[Problem]]:
    if text[:1] in {"[", "{", '"', "'"}:
        return parse_flow(text, label)
    return Node(text, label, label, plain=True), []
