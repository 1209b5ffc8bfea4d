"""What `launcher bench machine` measured: the profile that plans for a machine like it are made with. No torch."""

from __future__ import annotations

import re
from bisect import bisect_left
from math import log
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from launcher import environ
from launcher.disk import read_json, write_json
from launcher.errors import UsageError
from launcher.plan.hardware import cpu_name
from launcher.plan.plan import Frozen

VERSION = 5  # of the profile's fields: one of another version is measured anew


class Line(Frozen):
    """Of anything that moves bytes: seconds for a message without content, and bytes per second."""

    latency_s: float
    bytes_per_s: float

    def seconds(self, size: float) -> float:
        return self.latency_s + size / self.bytes_per_s


class Costs(Frozen):
    """Of a device in one dtype: what a step takes in matrix products, and beside them.

    ``matmul`` is floating point operations per second by the number of rows that a matrix of weights, read from
    memory, is multiplied with; ``unpacked`` the same of matrices that lie as in their files, where that differs. A pass
    through some layers takes ``pass_s``, and each layer ``layer_s``, however little there is to compute; ``row_s`` more per row that decodes, ``width_s`` per token
    and element of its hidden state and MLP; ``decode_s`` per byte of the keys and values that the token of a row that
    decodes attends to, ``prefill_s`` per query element and position that a token of a prompt does.
    """

    matmul: dict[int, float]
    pass_s: float
    layer_s: float
    row_s: float
    width_s: float
    decode_s: float
    prefill_s: float
    unpacked: dict[int, float] = Field(default_factory=dict)

    def element_s(self, rows: float) -> float:
        """Seconds per element of a matrix that is multiplied with so many rows."""
        return element_s(self.matmul, rows)


def element_s(matmul: dict[int, float], rows: float) -> float:
    """The same of the rates by rows, between and beyond the numbers of rows that were measured."""
    points = sorted(matmul.items())
    seconds = [2 * many / rate for many, rate in points]
    place = bisect_left(points, (rows, 0.0))
    if place == 0:
        return seconds[0]
    if place == len(points):
        return seconds[-1] * rows / points[-1][0]
    (low, _), (high, _) = points[place - 1], points[place]
    share = (rows - low) / (high - low)
    return seconds[place - 1] * (1 - share) + seconds[place] * share


class Speed(Frozen):
    """Of one of ``ranks`` ranks that work at the same time on one node, with ``threads`` threads each.
    ``device``: cpu, or a GPU's name; bytes per second: ``memory``, and ``mapped`` of files that are in memory;
    ``costs`` by dtype."""

    device: str
    ranks: int
    threads: int
    memory: float
    mapped: float | None  # None where they can't be mapped so
    costs: dict[str, Costs]


class MachineProfile(Frozen):
    """A machine of one kind; ``link``, ``all_reduce`` and ``gather`` are between two ranks of a node, over
    ``backend``. ``step_s`` is what the engine's own Python takes per step, ``start_s`` until a rank has met the
    others, ``loading_s`` what loading takes beside reading."""

    version: int = VERSION
    kind: str
    host: str
    measured: float  # seconds since the epoch
    software: str
    speeds: list[Speed]
    step_s: float
    start_s: float
    loading_s: float
    backend: str
    link: Line
    all_reduce: Line
    gather: Line
    disk: float  # bytes per second, of what is not in memory
    cached: float  # bytes per second that one thread reads of files that are

    def speed(self, device: str, ranks: int) -> Speed | None:
        """That of as many ranks per node, or of the nearest number that was measured."""
        found = [speed for speed in self.speeds if speed.device == device]
        return min(found, key=lambda speed: abs(log(speed.ranks / ranks)), default=None)


def kind_here() -> str:
    """Machines that share a profile have this in common."""
    return f"{cpu_name()}, {environ.cpus()} CPUs"


def profile_path(kind: str) -> Path:
    """One file per kind of machine, since nodes of several kinds may share a home."""
    return (
        environ.cache_home()
        / "machines"
        / f"{re.sub(r'[^a-z0-9]+', '-', kind.lower()).strip('-')}.json"
    )


def load_profile(kind: str | None = None) -> MachineProfile | None:
    """The profile of this kind of machine (this one's by default), or None. Raises UsageError for one that can't be
    read."""
    path = profile_path(kind or kind_here())
    try:
        found: Any = read_json(path)
        if found is None or found.get("version") != VERSION:
            return None
        return MachineProfile.model_validate(found)
    except (ValueError, AttributeError, ValidationError):
        raise UsageError(
            "the measured profile can't be read", where=str(path), fix="launcher bench machine"
        ) from None


def save_profile(profile: MachineProfile) -> Path:
    """Where it is now. Raises OSError."""
    path = profile_path(profile.kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, profile.model_dump(mode="json"))
    return path
