"""How a model is split: one module per value of `parallel.strategy`.

A strategy is a module with `Options` (what `parallel.options` may hold), `place(checkpoint, machines,
spec, demand) -> Plan`, which needs no torch, and `load(placement, plan, spec, recorder, gang)`: a StepModel on the
first rank of a replica, on its other ranks a Server.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from launcher.errors import UsageError
from launcher.job.problems import did_you_mean


def names() -> list[str]:
    """The strategies that there are: the modules of this folder by file name."""
    files = Path(__file__).parent.glob("*.py")
    return sorted(file.stem for file in files if not file.stem.startswith("_"))


def get(name: str) -> ModuleType:
    """The module of a strategy. Raises UsageError for a name that is none."""
    if name not in names():
        raise UsageError(
            f"there is no strategy {name!r}",
            where="parallel.strategy",
            fix=did_you_mean(name, names()) or f"use {' or '.join(names())}",
        )
    return importlib.import_module(f"{__name__}.{name}")
