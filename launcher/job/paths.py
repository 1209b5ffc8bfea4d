"""Paths of a spec: relative ones start at the spec's folder. What exists is asked when it is used."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def resolve_paths(data: dict[str, Any], base: Path) -> dict[str, Any]:
    """Make the paths in a spec's plain data absolute, in place; returns ``data``."""
    model, given, parallel = data.get("model"), data.get("input"), data.get("parallel")
    options = parallel.get("options") if isinstance(parallel, dict) else None
    _change(model, "path", lambda path: _model(path, base))
    _change(given, "path", lambda path: _input(path, base))
    _change(given, "template", lambda t: t if t in {"auto", "none"} else _absolute(t, base))
    _change(options, "offload_dir", lambda path: _absolute(path, base))
    _script(data.get("script"), data.get("accelerate"), base)
    return data


def _script(script: Any, accelerate: Any, base: Path) -> None:
    if isinstance(script, dict):
        script.setdefault("directory", ".")
    deepspeed = accelerate.get("deepspeed") if isinstance(accelerate, dict) else None
    for section, key in (
        (script, "path"),
        (script, "directory"),
        (deepspeed, "config_file"),
        (deepspeed, "deepspeed_config_file"),
    ):
        _change(section, key, lambda path: _absolute(path, base))


def _change(section: Any, key: str, function: Callable[[str], str]) -> None:
    """Apply ``function`` to a text, or to each of a list; what is neither is refused later."""
    if not isinstance(section, dict):
        return
    value = section.get(key)
    if isinstance(value, str) and value:
        section[key] = function(value)
    elif isinstance(value, list):
        section[key] = [function(item) if isinstance(item, str) else item for item in value]


def _absolute(path: str, base: Path) -> str:
    return os.path.normpath(base / Path(path).expanduser())


def _model(path: str, base: Path) -> str:
    """A hub id is one name or two; it gives way to a folder of that name beside the spec."""
    local = path.startswith((".", "~", "/")) or path.count("/") > 1 or path.endswith("/")
    return _absolute(path, base) if local or (base / path).is_dir() else path


def _input(path: str, base: Path) -> str:
    """Only the part that the user wrote is a glob, not the folder of the spec."""
    if not glob.has_magic(path):
        return _absolute(path, base)
    return os.path.normpath(Path(glob.escape(str(base))) / Path(path).expanduser())
