"""Recorded sha256 of a checkpoint's files, and whether the files still have them. No torch.

The hub's cache names the files that it fetched by their sha256. Other directories hold the record of their files in
SHA256SUMS, as the command sha256sum writes it where the files are known to be right.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from launcher.errors import PreflightError, WeightsError
from launcher.plan.headers import inside

RECORD = "SHA256SUMS"
CHUNK = 4 << 20
READERS = 4  # files at a time: shared filesystems give one reader a part of what they can
_SUM = re.compile(r"[0-9a-f]{64}")


def verify_weights(
    directory: Path, files: Iterable[str], say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Read ``files`` of a checkpoint whole; the sha256, size and time of change of each, for ``changed``.

    ``say`` is told as it goes. Raises WeightsError that names every file that is not what was recorded of it,
    PreflightError where nothing was recorded.
    """
    names = sorted(set(files))
    recorded = _recorded(directory, names)
    say(f"verifying {len(names)} files of {directory}")
    found: dict[str, dict[str, Any]] = {}
    with ThreadPoolExecutor(READERS) as pool:
        for name, seen in zip(names, pool.map(lambda n: _seen(directory / n), names), strict=True):
            found[name] = seen
    wrong = [name for name in names if found[name]["sha256"] != recorded[name]]
    if wrong:
        raise _differ(directory, wrong)
    return found


def recheck(directory: Path, verified: Mapping[str, Mapping[str, Any]]) -> None:
    """Read those files again that look changed since ``verify_weights`` saw them. Raises WeightsError if one is."""
    wrong = []
    for name, before in verified.items():
        path = directory / name
        if not path.is_file() or (
            _stamp(path) != {key: before[key] for key in ("bytes", "mtime_ns")}
            and _seen(path)["sha256"] != before["sha256"]
        ):
            wrong.append(name)
    if wrong:
        raise _differ(directory, wrong)


def _recorded(directory: Path, names: list[str]) -> dict[str, str]:
    listed = _listed(directory)
    found = {}
    for name in names:
        blob = inside(directory, name, directory).resolve().name
        if known := listed.get(name) or (blob if _SUM.fullmatch(blob) else None):
            found[name] = known
    if lacking := [name for name in names if name not in found]:
        raise PreflightError(
            f"no sha256 is recorded of {', '.join(lacking[:4])}"
            + (f" and {len(lacking) - 4} more" if len(lacking) > 4 else ""),
            where=str(directory),
            fix=f"where the files are known to be right: sha256sum *.safetensors > {RECORD}",
        )
    return found


def _listed(directory: Path) -> dict[str, str]:
    path = directory / RECORD
    if not path.is_file():
        return {}
    pairs = (line.split(maxsplit=1) for line in path.read_text(errors="replace").splitlines())
    return {
        pair[1].removeprefix("*").removeprefix("./"): pair[0].lower()
        for pair in pairs
        if len(pair) == 2 and _SUM.fullmatch(pair[0].lower())
    }


def _seen(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while data := file.read(CHUNK):
                digest.update(data)
        return {"sha256": digest.hexdigest(), **_stamp(path)}
    except OSError as error:
        raise WeightsError(f"can't be read: {error.strerror}", where=str(path)) from error


def _stamp(path: Path) -> dict[str, int]:
    found = path.stat()
    return {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns}


def _differ(directory: Path, names: list[str]) -> WeightsError:
    return WeightsError(
        f"not what was recorded of it by its sha256: {', '.join(names)}",
        where=str(directory),
        cause="a disk or a copy that flipped bits, or other weights of the same shapes",
        fix="fetch these files again",
    )
