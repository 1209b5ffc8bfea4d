"""Models whose weights are not their checkpoint's bytes in one dtype, which can't be read layer by layer. The installed
transformers knows them; it is read, not imported, which would take seconds. No torch."""

from __future__ import annotations

import ast
import functools
import importlib.util
from pathlib import Path

# Operations of the library's converters that put sources end to end.
FOLLOWED = (["MergeModulelist"], ["MergeModulelist", "Concatenate"], ["Concatenate"])
ALWAYS, IN_HALF = "_keep_in_fp32_modules_strict", "_keep_in_fp32_modules"


def not_streamed(model_type: str, dtype: str) -> str | None:
    """None if the weights of such a model in ``dtype`` can be read as they lie, else why not: "it ..."."""
    if _is_computed(model_type):
        return "it has weights, in any dtype, that transformers computes from a checkpoint's while it loads"
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
    """What the classes of a model say."""
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
    library, name = library_folder(), model_type.replace("-", "_")
    if library is None or not name.isidentifier():
        return []
    models = library / "models"
    for kind in (name, name.removesuffix("_text")):
        path = models / kind / f"modeling_{kind}.py"
        if path.is_file():
            return [path]
    return []


@functools.cache
def _is_computed(model_type: str) -> bool:
    """Whether the library's table of conversions has more for such a model than renaming, stacking and joining."""
    library = library_folder()
    path = library / "conversion_mapping.py" if library else None
    text = path.read_text(encoding="utf-8") if path and path.is_file() else ""
    if f'"{model_type}"' not in text:  # most are not in it, and parsing it takes a while
        return False
    found: dict[str, bool] = {}
    like: dict[str, str] = {}  # types that are converted as another one is
    for node in ast.walk(ast.parse(text)):
        for key, value in _entries(node):
            if isinstance(value, ast.List):
                found[key] = any(map(_computes, ast.walk(value)))
            elif isinstance(value, ast.Constant) and isinstance(value.value, str):
                like[key] = value.value
    return found.get(model_type, found.get(like.get(model_type, ""), False))


def _entries(node: ast.AST) -> list[tuple[str, ast.expr]]:
    """What a literal dict has, or what is assigned to one key of one, by keys that are text."""
    pairs: list[tuple[ast.expr | None, ast.expr]] = []
    if isinstance(node, ast.Dict):
        pairs = list(zip(node.keys, node.values, strict=True))
    elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
        pairs = [(node.targets[0].slice, node.value)]
    return [
        (key.value, value)
        for key, value in pairs
        if isinstance(key, ast.Constant) and isinstance(key.value, str)
    ]


def _computes(node: ast.AST) -> bool:
    """Whether this is a converter whose result is not its sources end to end: see launcher.model.recipe."""
    if not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "WeightConverter"):
        return False
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    steps = getattr(given.get("operations"), "elts", [])
    names = [getattr(getattr(step, "func", None), "id", "") for step in steps]
    several = len(getattr(given.get("target_patterns"), "elts", [])) > 1
    return several or (bool(names) and names not in FOLLOWED)


def library_folder() -> Path | None:
    """The folder of the installed transformers."""
    found = importlib.util.find_spec("transformers")
    return Path(found.origin).parent if found and found.origin else None
