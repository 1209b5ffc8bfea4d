"""Models whose weights are not their checkpoint's bytes in one dtype, which can't be read layer by layer. No torch."""

from __future__ import annotations

import ast
import functools
import importlib.util
from pathlib import Path

ALWAYS, IN_HALF = "_keep_in_fp32_modules_strict", "_keep_in_fp32_modules"


def not_streamed(model_type: str, dtype: str) -> str | None:
    """None if the weights of such a model in ``dtype`` can be read as they lie, else why not: "it ..."."""
    if dtype != "float32" and (kept := kept_in_float32(model_type, dtype)):
        return f"it keeps {', '.join(kept)} in float32 beside {dtype}"
    return None


def kept_in_float32(model_type: str, dtype: str) -> list[str]:
    """Names of modules that the installed transformers leaves in float32; none for models that it does not know."""
    attributes = _attributes(model_type)
    names = attributes.get(ALWAYS, set())
    if dtype == "float16":
        names = names | attributes.get(IN_HALF, set())
    return sorted(names)


@functools.cache
def _attributes(model_type: str) -> dict[str, set[str]]:
    """What the classes of a model say, from their source: importing it would take seconds."""
    found: dict[str, set[str]] = {}
    for path in _sources(model_type):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.List | ast.Set):
                continue
            for target in node.targets:
                if isinstance(target, ast.Name) and target.id in (ALWAYS, IN_HALF):
                    found.setdefault(target.id, set()).update(ast.literal_eval(node.value))
    return found


def _sources(model_type: str) -> list[Path]:
    """The file that has a model's classes; that of a text model may be called by the whole one's name."""
    library = importlib.util.find_spec("transformers")
    name = model_type.replace("-", "_")
    if library is None or library.origin is None or not name.isidentifier():
        return []
    models = Path(library.origin).parent / "models"
    for kind in (name, name.removesuffix("_text")):
        path = models / kind / f"modeling_{kind}.py"
        if path.is_file():
            return [path]
    return []
