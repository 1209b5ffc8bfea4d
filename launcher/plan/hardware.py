"""What this machine has, asked without torch: its GPUs and its memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from launcher import environ

SMI = ("nvidia-smi", "--query-gpu=index,uuid,name,memory.total,memory.free")
SMI_TIMEOUT_S = 20  # a driver that nobody used yet takes seconds to wake up
PROC_GPUS = Path("/proc/driver/nvidia/gpus")
MOUNTS = Path("/proc/self/mounts")
OWN_CGROUPS = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")
CGROUP_FILES = {  # version 2, and version 1's memory controller: limit, use, and what of it can be dropped
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


@dataclass(frozen=True)
class Gpu:
    """One GPU; bytes are None where the driver does not say."""

    name: str
    total_bytes: int | None = None
    free_bytes: int | None = None


def gpus_here() -> list[Gpu]:
    """The GPUs that this process may use, in the driver's order; none where there is no NVIDIA driver."""
    visible = environ.visible_gpus()
    try:
        done = subprocess.run(
            [*SMI, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=SMI_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return named_gpus()[: None if visible is None else len(visible)]
    return parse_smi(done.stdout, visible)


def parse_smi(text: str, visible: list[str] | None) -> list[Gpu]:
    """nvidia-smi's lines as GPUs; ``visible`` names those to keep, by index or by (the head of) their uuid."""
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines()]
    found = [(row[0], row[1], Gpu(row[2], *map(_mib, row[3:]))) for row in rows if len(row) == 5]
    if visible is None:
        return [gpu for _, _, gpu in found]
    return [
        gpu
        for name in visible
        for index, uuid, gpu in found
        if name == index or (name.startswith("GPU-") and uuid.startswith(name))
    ]


def named_gpus() -> list[Gpu]:
    """The GPUs of this machine by name alone, from /proc: at once, and without waking the driver."""
    found = []
    for path in sorted(PROC_GPUS.glob("*/information")):
        fields = dict(_pair(line) for line in path.read_text().splitlines())
        found.append(Gpu(fields.get("Model", "NVIDIA GPU")))
    return found


def cpu_name() -> str:
    """What this machine's CPU calls itself."""
    fields = dict(_pair(line) for line in Path("/proc/cpuinfo").read_text().splitlines())
    return fields.get("model name") or os.uname().machine


def memory_here() -> tuple[int, int]:
    """Bytes of memory that this machine has, and that this process can still take, by its cgroups too."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    fields = dict(_pair(line) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    limits = list(_cgroup_limits())
    total = min([pages, *(limit for limit, _ in limits)])
    return total, max(0, min([available, *(limit - used for limit, used in limits)]))


def room(folder: str | None) -> int:
    """Bytes that are free in ``folder`` (the one for temporary files without it), or where it would be made; 0 where
    this user can't write."""
    place = Path(folder or tempfile.gettempdir())
    while not os.path.lexists(place):  # unlike Path.exists, it raises nothing where it may not look
        place = place.parent
    writable = place.is_dir() and os.access(place, os.W_OK | os.X_OK)
    return shutil.disk_usage(place).free if writable else 0


def in_memory(folder: Path) -> bool:
    """Whether ``folder``, or where it would be made, is on a filesystem without a disk: what is in it takes memory."""
    best, kind = "", ""
    for line in MOUNTS.read_text().splitlines():
        _, place, found, *_ = line.split()
        if folder.resolve().is_relative_to(place) and len(place) >= len(best):
            best, kind = place, found
    return kind in ("tmpfs", "ramfs")


def _cgroup_limits() -> Iterator[tuple[int, int]]:
    """Limit and use of each cgroup with a memory limit above this process; use without what can be dropped."""
    for line in OWN_CGROUPS.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in CGROUP_FILES:
            continue
        root, (limit, used, cache) = CGROUPS / controllers, CGROUP_FILES[controllers]
        here = root / path.lstrip("/")
        for group in (here, *here.parents):
            if not group.is_relative_to(root):
                break
            try:
                bound = int((group / limit).read_text())
                stat = dict(
                    _pair(row, " ") for row in (group / "memory.stat").read_text().splitlines()
                )
                yield bound, int((group / used).read_text()) - int(stat.get(cache, 0))
            except (OSError, ValueError):
                continue  # no such file, or "max": no limit at this level


def _mib(cell: str) -> int | None:
    return int(cell) * 2**20 if cell.isdigit() else None


def _pair(line: str, separator: str = ":") -> tuple[str, str]:
    key, _, value = line.partition(separator)
    return key.strip(), value.strip()
