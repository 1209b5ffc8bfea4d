"""Python and the packages: what is installed against what this program asks for."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import metadata

from launcher.doctor.finding import Finding

AREA = "software"
INTERNAL = {"dev"}  # extras that no user needs


def examine() -> Iterator[Finding]:
    """The interpreter, the required packages, and those of the extras."""
    from packaging.requirements import Requirement

    version = metadata.version("launcher")
    yield Finding(AREA, "launcher", "ok", f"{version} on Python {platform.python_version()}")
    for requirement in map(Requirement, metadata.requires("launcher") or []):
        extra = _extra(str(requirement.marker or ""))
        if extra in INTERNAL:
            continue
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield _absent(requirement.name, extra)
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            yield Finding(
                AREA,
                requirement.name,
                "problem" if extra is None else "warning",
                f"{found} is here, {requirement.specifier} is needed",
                f"pip install '{requirement.name}{requirement.specifier}'",
            )
        elif requirement.name in ("torch", "transformers", "accelerate", "submitit") or extra:
            yield Finding(AREA, requirement.name, "ok", found)


def _extra(marker: str) -> str | None:
    """``parquet`` of ``extra == "parquet"``."""
    _, found, name = marker.partition("extra ==")
    return name.strip(" '\"") if found else None


def _absent(name: str, extra: str | None) -> Finding:
    if extra is None:
        return Finding(AREA, name, "problem", "is not installed", f"pip install {name}")
    says = f"is not installed; only the extra `{extra}` needs it"
    return Finding(AREA, name, "note", says, f"pip install {name}")
