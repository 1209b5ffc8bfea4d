"""Batch generation with language models too big for one GPU, and the account of where the time went."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from launcher.api import Run, diagnose, job_schema, list_runs, plan_job, run_here, submit
    from launcher.errors import LauncherError
    from launcher.job.said import JobSpec

__version__ = "0.1.0"
__all__ = [
    "JobSpec",
    "LauncherError",
    "Run",
    "diagnose",
    "job_schema",
    "list_runs",
    "plan_job",
    "run_here",
    "submit",
]

_HOMES = {"JobSpec": "launcher.job.said", "LauncherError": "launcher.errors"}


def __getattr__(name: str) -> Any:
    """The Python API, imported when it is asked for: `import launcher` costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES.get(name, "launcher.api")), name)
