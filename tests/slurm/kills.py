"""A run's processes on the nodes of the dev cluster, and a seeded killer of them.

All of it from outside the nodes, by what /proc shows: the processes know nothing of it.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster import Cluster

ROLES = {  # in this order: the launch's command line names the rank's module, too
    "submitit.core._submit": "agent",  # submitit's process of a node, which the agent runs in
    "accelerate.commands.accelerate_cli": "launch",
    "launcher.runtime.rank": "rank",
}


@dataclass(frozen=True)
class Victim:
    """A process, by the machine's own ids."""

    node: str
    role: str
    pid: int

    def kill(self) -> bool:
        """SIGKILL; False if it had ended before. Returns when it is gone."""
        return self.signal(signal.SIGKILL)

    def signal(self, number: int) -> bool:
        try:
            process = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            if _role(_words(self.pid)) != self.role:
                return False  # the id is another process's by now
            signal.pidfd_send_signal(process, number)
            if number == signal.SIGKILL:
                select.select([process], [], [], 300)
        except (ProcessLookupError, FileNotFoundError):
            return False  # it ended meanwhile
        finally:
            os.close(process)
        return True


def victims(cluster: Cluster, run: Path) -> list[Victim]:
    """The agents, launches and ranks of a run, wherever they are, in an order that does not depend on their ids."""
    nodes = {_namespace(host.pid): name for name, host in cluster.hosts.items() if host.alive()}
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            pid, words = int(entry.name), _words(int(entry.name))
            role, node = _role(words), nodes.get(_namespace(pid))
            if role and node and any(word.startswith(str(run)) for word in words):
                found.append(Victim(node, role, pid))
    return sorted(found, key=lambda victim: (victim.node, victim.role, victim.pid))


class Killer:
    """Strikes at random: a rank, a launch, an agent, or all that runs of it on one node. ``strikes`` says what was hit,
    ``killed`` counts processes."""

    def __init__(self, cluster: Cluster, run: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.strikes: list[str] = []
        self.killed = 0
        self.cluster, self.run = cluster, run

    def strike(self) -> bool:
        """One victim less; False if there is none."""
        found = victims(self.cluster, self.run)
        if not found:
            return False
        role = self.random.choice(sorted({victim.role for victim in found}))
        chosen = self.random.choice([victim for victim in found if victim.role == role])
        whole = self.random.random() < 0.25
        hit = [v for v in found if v.node == chosen.node] if whole else [chosen]
        killed = [victim for victim in hit if victim.kill()]
        self.killed += len(killed)
        if killed:
            what = "all" if whole else chosen.role
            self.strikes.append(f"{what} on {chosen.node}")
        return bool(killed)

    @property
    def roles(self) -> list[str]:
        """Of the strikes: agent, launch, rank, or all."""
        return [strike.partition(" ")[0] for strike in self.strikes]

    def volley(self, most: int) -> Iterator[str]:
        """Up to ``most`` strikes in a row, as long as there is somebody left."""
        for _ in range(most):
            if not self.strike():
                return
            yield self.strikes[-1]


def _words(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")


def _role(words: list[str]) -> str | None:
    if "python" not in Path(words[0]).name:  # srun's command line has the agent's in it
        return None
    return next((role for module, role in ROLES.items() if module in words), None)


def _namespace(pid: int) -> str:
    return str(Path(f"/proc/{pid}/ns/pid").readlink())
