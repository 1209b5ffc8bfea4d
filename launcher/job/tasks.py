"""Which sections of a spec belong to which task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.errors import Problem
from launcher.job.nodes import Node

SCRIPT = "script"
OF_SCRIPT = ("script", "accelerate")
OF_ROWS = ("model", "parallel", "batch", "input", "generation")  # of generate and score
# Stands where a script's spec has nothing: a script is told by its arguments what it works on.
NOTHING = {"path": "-"}


def foreign(task: Any) -> tuple[str, ...]:
    """The sections that ``task`` has nothing to do with."""
    return OF_ROWS if task == SCRIPT else OF_SCRIPT


def filled(data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a script's spec, with those that every other task needs. Raises ValueError for what does not
    belong to the task, or lacks."""
    task = data.get("task")
    if found := [name for name in foreign(task) if data.get(name) not in (None, {})]:
        raise ValueError(f"task {task or 'generate'} has no `{found[0]}`")
    if task != SCRIPT:
        return dict(data)
    if data.get("script") is None:
        raise ValueError("task script needs `script`")
    return {**data, "model": NOTHING, "input": NOTHING}


def misplaced(root: Node, data: dict[str, Any]) -> list[Problem]:
    """The same mistakes with their places; mended in ``data``, so that the others are found, too."""
    task, problems = data.get("task"), []
    for name in foreign(task):
        if data.pop(name, None) not in (None, {}):
            node = root.child(name) or root
            hint = (
                "its arguments say what it works on"
                if task == SCRIPT
                else "did you mean task: script?"
            )
            problems.append(
                Problem(node.key_where, f"`{name}` is nothing to task {task or 'generate'}", hint)
            )
    if task == SCRIPT and data.get("script") is None:
        data["script"] = NOTHING
        problems.append(Problem(root.key_where, "`script` is missing"))
    return problems
