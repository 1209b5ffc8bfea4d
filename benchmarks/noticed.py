"""How soon a fault is noticed on the dev cluster: from the fault until the run directory says how the attempt ended.

    python -m benchmarks.noticed [--rounds 3]

Every fault meets a pipeline of two stages on two nodes in the middle of its work. Needs root and Slurm
(slurm/devcluster), and a machine with nothing else to do: each figure is the slowest of the rounds.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster import Cluster, why_not
from gate import Gate
from held_jobs import PIPELINE, SHARE, job, rank_of
from jobs import wait_for
from kills import Victim, victims
from on_slurm import ended, submit


@dataclass(frozen=True)
class Held:
    """A run that waits at its gate, and its processes on the node of the second stage."""

    cluster: Cluster
    job: str
    gate: Gate
    there: dict[str, Victim]


def kill(role: str) -> Callable[[Held], Any]:
    return lambda held: held.there[role].kill()


def cut(held: Held) -> None:
    held.cluster.cut(held.there["rank"].node)


def stop(held: Held) -> None:
    held.there["rank"].signal(signal.SIGSTOP)


def block(held: Held) -> None:
    """The first stage waits for the second, in a receive without a deadline."""
    stop(held)
    held.gate.open()
    time.sleep(1)


def warn(held: Held) -> None:
    """As Slurm does ahead of the time limit."""
    held.cluster.scancel("--signal=USR2", held.job)


@dataclass(frozen=True)
class Fault:
    """``cause`` it, maybe behind ``before``; then the attempt has ended within ``promised_s`` of docs/faults.md."""

    name: str
    promised_s: float
    cause: Callable[[Held], Any]
    before: Callable[[Held], Any] = lambda held: None
    limits: dict[str, str] = field(default_factory=dict)


FAULTS = [
    Fault("kill -9 of a rank", 2, kill("rank")),
    Fault("kill -9 of accelerate launch", 2, kill("launch")),
    Fault("kill -9 of an agent", 2, kill("agent")),
    Fault("the network of a node cut", 15, cut),
    Fault("a rank stopped, limits.stall 5 s", 5 + 2, stop, limits={"stall": "5s"}),
    Fault("the time limit, a rank blocked", 10, warn, before=block),
]


def noticed_s(cluster: Cluster, fault: Fault, folder: Path) -> float:
    """Seconds until the attempt had ended; by the clock of the machine that all nodes share."""
    run, gate = folder / "run", Gate(folder / "gate", SHARE)
    limits = {"step": "240s", "drain": "240s", **fault.limits}
    (number,) = submit(
        job(folder, **PIPELINE, limits=limits),
        run,
        {"SLURM_CONF": cluster.env["SLURM_CONF"], **gate.env},
    )
    gate.wait()
    node = rank_of(cluster, run, 1).node
    there = {victim.role: victim for victim in victims(cluster, run) if victim.node == node}
    held = Held(cluster, number, gate, there)
    fault.before(held)
    began = time.time()
    fault.cause(held)
    (end,) = wait_for(lambda: ended(run))
    return float(end["ended"] - began)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if reason := why_not():
        print(f"no cluster here: {reason}", file=sys.stderr)
        return 3
    late = False
    print(f"{'':34}promised  noticed (slowest of {options.rounds})")
    for fault in FAULTS:
        found = []
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory(prefix="noticed-") as scratch:
                os.environ["XDG_STATE_HOME"] = f"{scratch}/state"  # not among the user's runs
                cluster = Cluster(Path(scratch) / "cluster").up(tied=True)
                try:
                    found.append(noticed_s(cluster, fault, Path(scratch)))
                finally:
                    cluster.down()
        late |= max(found) > fault.promised_s
        print(f"{fault.name:34}{fault.promised_s:6.0f} s  {max(found):6.1f} s", flush=True)
    return late


if __name__ == "__main__":
    sys.exit(main())
