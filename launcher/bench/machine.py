"""`launcher bench machine`: what this machine does per second, in worlds of one rank and of several."""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from launcher import environ
from launcher.bench.storage import read_rates, scratch_file
from launcher.disk import read_json
from launcher.errors import RunFailed
from launcher.plan.hardware import gpus_here
from launcher.plan.measured import MachineProfile, kind_here
from launcher.runtime import process

PATIENCE_S = 600
MOST_RANKS = 8
DTYPES = {"cpu": ("float32", "bfloat16"), "cuda": ("float32", "bfloat16", "float16")}
ROUNDS = 2  # a machine that others share is quicker in one minute than in the next
LAUNCH_S = 4.0  # of agent and `accelerate launch` before there is a rank


def measure(folder: Path, say: Callable[[str], None]) -> MachineProfile:
    """The profile of this machine; ``folder`` is where checkpoints are read from. Takes some minutes.

    Raises RunFailed if a rank does, OSError where ``folder`` can't be written.
    """
    busy = os.getloadavg()[0]
    if busy > environ.cpus() / 2:
        say(f"others are at work here (load {busy:.1f}): what is measured may be too low")
    say(f"reading from {folder}")
    worlds = _worlds(environ.cpus(), len(gpus_here()))
    rounds: list[list[dict[str, Any]]] = []
    with scratch_file(folder) as file:
        disk, cached = read_rates(file)
        for number in range(ROUNDS):
            rounds.append([])
            for kind, ranks, threads in worlds:
                said = f"ranks on {kind}: {ranks}, threads of each: {threads}"
                say(f"{said} (round {number + 1} of {ROUNDS})")
                rounds[-1].append(_world(kind, ranks, threads, file))
    found = [mean(list(each)) for each in zip(*rounds, strict=True)]
    lines = [each for each in found if "link" in each][-1]
    return MachineProfile(
        kind=kind_here(),
        host=os.uname().nodename,
        measured=time.time(),
        software=f"torch {metadata.version('torch')}, transformers {metadata.version('transformers')}",
        speeds=[each["speed"] for each in found],
        backend="nccl" if len(gpus_here()) > 1 else "gloo",
        link=lines["link"],
        all_reduce=lines["all_reduce"],
        gather=lines["gather"],
        disk=disk,
        cached=cached,
        step_s=found[0]["step_s"],
        start_s=LAUNCH_S + max(each["start_s"] for each in found),
        loading_s=max(each["loading_s"] for each in found),
    )


def mean(values: list[Any]) -> Any:
    """The mean of numbers, or of those within mappings of one form; None where one of them is, else the first."""
    first = values[0]
    if isinstance(first, dict):
        return {key: mean([value[key] for value in values]) for key in first}
    if None in values:
        return None
    return statistics.mean(values) if isinstance(first, int | float) else first


def _worlds(cpus: int, gpus: int) -> list[tuple[str, int, int]]:
    """Device, ranks and threads of each: what a rank gets depends on how many share memory and cores."""
    sizes = [1, 2, *[2**n for n in range(2, 4) if 2**n <= min(cpus, MOST_RANKS)]]
    worlds = [("cpu", ranks, max(1, cpus // ranks)) for ranks in sizes]
    return worlds + ([("cuda", min(gpus, 2), 1)] if gpus else [])


def _world(
    kind: str, ranks: int, threads: int, file: Path, dtypes: Sequence[str] = ()
) -> dict[str, Any]:
    """What rank 0 of so many says, and of ``file``, which is in memory."""
    process.adopt_orphans()
    with tempfile.TemporaryDirectory(prefix="launcher-bench-") as name:
        folder = Path(name)
        (folder / "file").symlink_to(file.absolute())
        began = time.time()
        env = environ.for_launch("bench", "lo", {"OMP_NUM_THREADS": str(threads)})
        started = [
            process.start(
                process.python(
                    "launcher.bench.rank",
                    *(name, str(rank), str(ranks), str(threads), kind),
                    ",".join(dtypes or DTYPES[kind]),
                ),
                folder / f"rank-{rank}.log",
                env,
            )
            for rank in range(ranks)
        ]
        deadline = time.monotonic() + PATIENCE_S
        try:
            while any(child.poll() is None for child in started) and time.monotonic() < deadline:
                if any(child.poll() for child in started):
                    break
                time.sleep(0.05)
            late = [] if any(child.poll() for child in started) else _running(started)
        finally:
            for child in started:
                process.end(child)
        if late:
            raise RunFailed(
                f"ranks {late} of {ranks} had not measured all within {PATIENCE_S} s",
                where=os.uname().nodename,
                cause="others are at work here, or a device does not answer",
                fix="launcher bench machine again when the machine is idle",
            )
        failed = [rank for rank, child in enumerate(started) if child.returncode]
        if failed:
            log = (folder / f"rank-{failed[0]}.log").read_text(errors="replace").strip()
            raise RunFailed(
                f"rank {failed[0]} of {ranks} failed while measuring",
                where=os.uname().nodename,
                cause=log.splitlines()[-1] if log else f"exit code {started[failed[0]].returncode}",
                fix="launcher doctor looks for what is wrong here",
            )
        said: dict[str, Any] = read_json(folder / "rank-0.json")
        return {**said, "start_s": said["joined"] - began}


def _running(ranks: list[subprocess.Popen[bytes]]) -> list[int]:
    return [number for number, rank in enumerate(ranks) if rank.poll() is None]
