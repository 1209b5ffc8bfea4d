"""Filesystems: where runs, the Python environment and the hub's cache lie, and whether they keep a run's promises."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from launcher.disk import create_exclusive, publish, sync_file
from launcher.doctor.finding import Finding
from launcher.report.units import size

AREA, CHECK = "storage", "writing"
SHARED = {
    *(
        "nfs",
        "nfs4",
        "lustre",
        "gpfs",
        "beegfs",
        "ceph",
        "cifs",
        "smb3",
        "panfs",
        "wekafs",
        "pvfs2",
    ),
    *("glusterfs", "afs", "9p", "virtiofs", "daos"),
}
LEAST_FREE = 10 << 30
SLOW_S = 0.05  # per small file: a claim or a sign of life
TRIES = 20
BLOCK = 32 << 20


def examine(folder: Path, cluster: bool) -> Iterator[Finding]:
    """``folder`` is where runs go. With ``cluster``, all of it has to be seen by other nodes."""
    from huggingface_hub import constants

    places = {
        "runs": folder,
        "the Python environment": Path(sys.prefix),
        "the hub's cache": Path(constants.HF_HUB_CACHE),
    }
    yield from shared(places, cluster)
    yield space(existing(folder))
    yield promises(existing(folder))


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def shared(places: Mapping[str, Path], cluster: bool) -> Iterator[Finding]:
    """On which kinds of filesystem the places lie, and whether other nodes may see them."""
    kinds: dict[str, list[str]] = {}
    for name, path in places.items():
        kind = filesystem(existing(path).resolve())
        kinds.setdefault(kind, []).append(f"{name} ({path.absolute()})")
    for kind, names in kinds.items():
        says = f"{', '.join(names)}: on {kind}"
        if not cluster or kind in SHARED or kind.startswith("fuse."):
            yield Finding(AREA, "places", "ok", says)
            continue
        remedy = "compute nodes have to see them: srun launcher doctor --node tells whether they do"
        yield Finding(AREA, "places", "warning", f"{says}, mostly one machine's own", remedy)


def filesystem(path: Path) -> str:
    """The type of the filesystem that ``path`` is on, as the kernel calls it."""
    best, kind = "", "unknown"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        point = left.split()[4].encode().decode("unicode_escape")
        if path.is_relative_to(point) and len(point) >= len(best):
            best, kind = point, right.split()[0]
    return kind


def space(folder: Path) -> Finding:
    """Room for journals and results."""
    free = shutil.disk_usage(folder).free
    if free < LEAST_FREE:
        remedy = "make room, or set output.dir; quotas are not in this figure"
        return Finding(AREA, "free space", "warning", f"{size(free)} at {folder}", remedy)
    return Finding(AREA, "free space", "ok", f"{size(free)} at {folder} (quotas not counted)")


def promises(folder: Path) -> Finding:
    """What the ledger is built on: exclusive creation, replacement in one step, syncing; and what they cost."""
    probe = folder / f".launcher-doctor-probe-{os.uname().nodename}-{os.getpid()}"
    try:
        probe.mkdir(mode=0o700)
        try:
            return _judged(folder, *_measure(probe))
        finally:
            shutil.rmtree(probe)
    except OSError as error:
        says = f"{folder} can't be used: {error.strerror}"
        remedy = "set output.dir to a folder that you can write, on a filesystem with hard links"
        return Finding(AREA, CHECK, "problem", says, remedy)


def _measure(probe: Path) -> tuple[bool, float, float]:
    """Whether exclusive creation and replacement hold; seconds per small file; bytes per second written."""
    held = create_exclusive(probe / "once", "first") and not create_exclusive(probe / "once", "2nd")
    began = time.perf_counter()
    for number in range(TRIES):
        with publish(probe / "replaced") as temporary:
            temporary.write_text(str(number))
    each = (time.perf_counter() - began) / TRIES
    held = held and (probe / "replaced").read_text() == str(TRIES - 1)
    began = time.perf_counter()
    (probe / "block").write_bytes(bytes(BLOCK))
    sync_file(probe / "block")
    return held, each, BLOCK / (time.perf_counter() - began)


def _judged(folder: Path, held: bool, each: float, rate: float) -> Finding:
    says = f"{each * 1e3:.1f} ms per small file, {size(rate)}/s at {folder}"
    if not held:
        says = f"exclusive creation or replacement by rename does not hold at {folder}"
        return Finding(AREA, CHECK, "problem", says, "set output.dir to another filesystem")
    if each > SLOW_S:
        remedy = "runs work, and start slowly; a less busy filesystem for output.dir helps"
        return Finding(AREA, CHECK, "warning", says, remedy)
    return Finding(AREA, CHECK, "ok", f"exclusive creation and rename hold; {says}")
