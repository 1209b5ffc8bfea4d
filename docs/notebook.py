"""Runs the cells of api.ipynb and stores what they say: `python -m docs.notebook [TARGET]`, in the repository's folder. A test
holds that what is stored is what they say, but for figures."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).with_name("api.ipynb")


def executed(notebook: dict[str, Any]) -> dict[str, Any]:
    """``notebook`` with the outputs of its cells. What a cell raises is raised."""
    names: dict[str, Any] = {}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells, 1):
        printed, value = run("".join(cell["source"]), names)
        cell["execution_count"], cell["outputs"] = number, []
        if printed:
            stream = {"name": "stdout", "output_type": "stream"}
            cell["outputs"].append({**stream, "text": printed.splitlines(keepends=True)})
        if value is not None:
            result = {"data": {"text/plain": [repr(value)]}, "execution_count": number}
            cell["outputs"].append({**result, "metadata": {}, "output_type": "execute_result"})
    return notebook


def run(source: str, names: dict[str, Any]) -> tuple[str, Any]:
    """What a cell prints, and the value of its last line."""
    *lines, last = ast.parse(source).body
    has_value, printed, value = isinstance(last, ast.Expr), io.StringIO(), None
    body = ast.Module(lines if has_value else [*lines, last], [])
    with contextlib.redirect_stdout(printed):
        exec(compile(body, "<cell>", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
    return printed.getvalue(), value


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else NOTEBOOK
    made = executed(json.loads(NOTEBOOK.read_text(encoding="utf-8")))
    text = json.dumps(made, indent=1, ensure_ascii=False) + "\n"
    target.write_text(text, encoding="utf-8")
