"""Machines: the nodes and devices that a plan is made for, and where that knowledge comes from. No torch."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any, Literal

from launcher.errors import UsageError
from launcher.job.problems import did_you_mean
from launcher.job.spec import JobSpec, SlurmSpec
from launcher.plan.hardware import Gpu, gpus_here, memory_here, named_gpus
from launcher.plan.measured import MachineProfile, load_profile

ASSUMED = "A100-80GB"
# nvidia-smi counts memory that no process can have; the share is that of the GPUs in the table.
USABLE = 0.96


@dataclass(frozen=True)
class GpuProfile:
    """One kind of GPU. Bytes, bytes per second, and dense floating point operations per second by dtype;
    ``link``: bytes per second that one GPU sends to others of its node."""

    name: str
    memory_bytes: int
    bandwidth: float | None = None
    flops: Mapping[str, float] = field(default_factory=dict)
    match: str = ""
    link: float | None = None


@dataclass(frozen=True)
class Machines:
    """The machines of one world. ``host_bytes`` is the memory of one node, ``host_note`` what was assumed of
    it; ``notes`` say what else was assumed. ``worlds`` share the run; ``profile`` is what was measured, if anything.
    ``here``: the only node is this machine."""

    device: Literal["cuda", "cpu"]
    nodes: int
    gpus_per_node: int  # 0 on CPUs
    gpu: GpuProfile | None
    host_bytes: int
    host_note: str | None = None
    notes: tuple[str, ...] = ()
    worlds: int = 1
    profile: MachineProfile | None = None
    here: bool = False


def resolve_machines(spec: JobSpec, here: bool) -> Machines:
    """The machines of a spec: this one (``here``, for `run`), or those that it asks Slurm for.

    ``device: auto`` is CUDA where there are GPUs: on this machine for `run`, in ``gpus_per_node``
    otherwise. Raises UsageError for GPUs that are not there, unknown profiles, and contradictions.
    """
    host_bytes, host_note = _host(spec.slurm, here)
    notes = []
    if here and spec.resources.nodes > 1:
        notes.append(f"resources.nodes is {spec.resources.nodes}, but this runs on one machine")
    nodes = 1 if here else spec.resources.nodes
    found, count = _gpus(spec, here)
    if not count:
        made = Machines("cpu", nodes, 0, None, host_bytes, host_note, tuple(notes))
    else:
        gpu = _profile(spec.resources.gpu, found, here, notes)
        made = Machines("cuda", nodes, count, gpu, host_bytes, host_note, tuple(notes))
    worlds = 1 if here else spec.slurm.array
    return replace(made, worlds=worlds, profile=load_profile(), here=here)


@functools.cache
def gpu_profiles() -> dict[str, GpuProfile]:
    """The table of GPUs by name."""
    table: dict[str, Any] = json.loads(
        (resources.files("launcher.plan") / "gpus.json").read_text()
    )["gpus"]
    return {
        name: GpuProfile(
            name,
            int(entry["gib"] * 2**30),
            entry["bandwidth_gb_s"] * 1e9,
            {dtype: tera * 1e12 for dtype, tera in entry["tflops"].items()},
            entry["match"],
            entry["link_gb_s"] * 1e9,
        )
        for name, entry in table.items()
    }


def profile_of(gpu: Gpu) -> GpuProfile | None:
    """The table's entry for a GPU's name, else one of its memory alone; None where nothing is known."""
    for profile in gpu_profiles().values():
        if re.search(profile.match, gpu.name):
            return profile
    return GpuProfile(gpu.name, int(gpu.total_bytes * USABLE)) if gpu.total_bytes else None


def slurm_gpus(slurm: SlurmSpec) -> int | None:
    """GPUs per node that sbatch's own options ask for: ``gres: gpu:a100:4``, ``gpus_per_node: a100:4``."""
    if slurm.gpus_per_node is not None:
        kinds = str(slurm.gpus_per_node).split(",")
        return sum(_last_number(kind) for kind in kinds)
    items = [item.removeprefix("gres/") for item in (slurm.gres or "").split(",")]
    counts = [_last_number(item) for item in items if re.match(r"gpu(:|$)", item)]
    return sum(counts) if counts else None


def _gpus(spec: JobSpec, here: bool) -> tuple[list[Gpu], int]:
    """The GPUs found on this machine, as far as they matter, and how many of a node are planned with."""
    asked, device = spec.resources.gpus_per_node, spec.resources.device
    if device == "cpu" or asked == 0:
        if device == "cuda":
            raise _no_gpus("resources.gpus_per_node is 0")
        return [], 0
    if here:
        found = gpus_here()
        count = len(found) if asked == "auto" or (not found and device == "auto") else asked
        if count > len(found):
            raise _no_gpus(f"this machine has {len(found)}, and {count} are asked for")
    else:
        found = named_gpus()
        count = _asked_of_slurm(spec, len(found))
    if device == "cuda" and not count:
        raise _no_gpus("there are none here" if here else "resources.gpus_per_node does not say")
    return found[:count] if here else found, count


def _asked_of_slurm(spec: JobSpec, found: int) -> int:
    asked, slurm = spec.resources.gpus_per_node, slurm_gpus(spec.slurm)
    if asked == "auto":
        return found if slurm is None else slurm
    if slurm is not None and slurm != asked:
        raise UsageError(
            f"resources.gpus_per_node is {asked}, but slurm asks for {slurm} GPUs per node",
            where="slurm.gres" if spec.slurm.gpus_per_node is None else "slurm.gpus_per_node",
            fix="make them equal, or leave one of them out",
        )
    return asked


def _profile(wanted: str, found: list[Gpu], here: bool, notes: list[str]) -> GpuProfile:
    if wanted != "auto" and not here:
        return _named(wanted)
    known = [profile for profile in map(profile_of, found) if profile]
    if not known and not here and found:
        known = [profile for profile in map(profile_of, gpus_here()) if profile]
    if not known and wanted != "auto":
        return _named(wanted)
    if not known:
        notes.append(f"{_why(found)}: planned for {ASSUMED}; resources.gpu names another")
        return gpu_profiles()[ASSUMED]
    least = min(known, key=lambda profile: profile.memory_bytes)
    if not here:
        notes.append(
            f"planned for the GPU of this machine, {least.name}; resources.gpu names another"
        )
    free = [gpu.free_bytes for gpu in found if gpu.free_bytes is not None] if here else []
    memory = min([least.memory_bytes, *free])
    return replace(least, memory_bytes=memory)


def _why(found: list[Gpu]) -> str:
    return f"the memory of {found[0].name} is not known" if found else "no GPU is here to be asked"


def _named(wanted: str) -> GpuProfile:
    by_lower = {name.lower(): profile for name, profile in gpu_profiles().items()}
    profile = by_lower.get(wanted.lower())
    if profile is None:
        raise UsageError(
            f"there is no GPU profile {wanted!r}",
            where="resources.gpu",
            fix=f"{did_you_mean(wanted, list(gpu_profiles())) or 'the profiles are'} "
            f"({', '.join(gpu_profiles())})",
        )
    return profile


def _no_gpus(cause: str) -> UsageError:
    return UsageError(
        "the GPUs that the spec asks for are not there",
        where="resources",
        cause=cause,
        fix="set resources.gpus_per_node, or resources.device to cpu",
    )


def _host(slurm: SlurmSpec, here: bool) -> tuple[int, str | None]:
    total, available = memory_here()
    if here:
        return available, None
    if slurm.mem is not None and slurm.mem.strip("0KMGTkmgt"):  # 0 is sbatch's word for all of it
        return _slurm_bytes(slurm.mem), None
    if slurm.mem_per_cpu is not None and slurm.cpus_per_task is not None:
        return _slurm_bytes(slurm.mem_per_cpu) * slurm.cpus_per_task, None
    note = f"planned with this machine's {total / 2**30:.0f} GiB per node; slurm.mem says otherwise"
    return total, note


def _slurm_bytes(size: str) -> int:
    number, unit = (size[:-1], size[-1].upper()) if size[-1].isalpha() else (size, "M")
    return int(number) * 1024 ** ("KMGT".index(unit) + 1)


def _last_number(kind: str) -> int:
    """4 of ``gpu:a100:4(S:0-1)``; a kind without a number is one."""
    number = kind.partition("(")[0].rpartition(":")[2]
    return int(number) if number.isdigit() else 1
