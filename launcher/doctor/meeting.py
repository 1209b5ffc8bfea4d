"""Nodes that look at each other: the tasks of one `srun` meet in a folder, which shows that they see the same one."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher import environ
from launcher.disk import create_exclusive, read_json, write_json
from launcher.doctor.finding import Finding

AREA = "nodes"
SEEN_S = 60.0  # Python starts late on a node that reads it from a busy filesystem
POLL_S = 0.05


class Meeting:
    """This task's place at the meeting: node ``node`` of ``nodes``. Node 0 removes the folder in the end."""

    def __init__(self, parent: Path) -> None:
        step = environ.slurm_step()
        self.node, self.nodes = (step.node, step.nodes) if step else (0, 1)
        self.spare = step is not None and step.local > 0  # one task of a node is enough
        name = step.name if step else f"{os.uname().nodename}-{os.getpid()}"
        self.alone = False
        self.folder = parent / f".launcher-doctor-{name}"

    def open(self) -> None:
        """Raises OSError where nothing can be written."""
        self.folder.mkdir(mode=0o700, exist_ok=True)

    def close(self) -> None:
        if self.node == 0 or self.alone:
            shutil.rmtree(self.folder, ignore_errors=True)

    def say(self, what: str, value: Any) -> None:
        """Publish something of this node's."""
        write_json(self.folder / f"{what}-{self.node:04d}.json", value)

    def agree(self, here: dict[str, Any]) -> tuple[Finding, dict[int, Any]]:
        """What node 0 makes of who came, and what each of those said: the same on all nodes, also where one is late.

        ``here`` is what this node said. A node that sees nothing of node 0 is ``alone``.
        """
        if self.node == 0:
            heard = self.hear("here", SEEN_S, range(self.nodes))
            shared = judge(heard, self.nodes, self.folder)
            self.say("verdict", {"shared": asdict(shared), "heard": list(heard.items())})
            return shared, heard
        told = self.hear("verdict", 2 * SEEN_S, [0]).get(0)  # node 0 may start and wait that long
        if told is None:
            self.alone = True
            return judge({self.node: here}, self.nodes, self.folder), {self.node: here}
        return Finding(**told["shared"]), {int(node): said for node, said in told["heard"]}

    def hear(self, what: str, patience_s: float, nodes: Collection[int]) -> dict[int, Any]:
        """What these nodes said, by node; those that are not heard in time are left out."""
        heard: dict[int, Any] = {}
        deadline = time.monotonic() + patience_s
        while len(heard) < len(nodes) and time.monotonic() < deadline:
            for node in set(nodes) - heard.keys():
                value = read_json(self.folder / f"{what}-{node:04d}.json")
                if value is not None:
                    heard[node] = value
            time.sleep(POLL_S)
        return heard

    def race(self) -> bool:
        """Whether this node is the one that creates a file which all nodes try to create."""
        return create_exclusive(self.folder / "race", str(self.node))


def judge(here: dict[int, Any], nodes: int, folder: Path) -> Finding:
    """Whether all nodes saw each other's files (``here``: what each said), and one alone won the race."""
    missing = sorted(set(range(nodes)) - here.keys())
    if missing:
        says = f"what node {missing[0]} of {nodes} wrote to {folder.parent} is not seen from another node"
        remedy = "give --dir a folder on a filesystem that all nodes share, and put runs there"
        return Finding(AREA, "shared filesystem", "problem", says, remedy)
    winners = [said["host"] for said in here.values() if said["won"]]
    if len(winners) != 1:
        says = f"{len(winners)} nodes created the same file exclusively: {', '.join(winners)}"
        remedy = (
            "set output.dir to another filesystem; on this one two ranks would take the same rows"
        )
        return Finding(AREA, "shared filesystem", "problem", says, remedy)
    hosts = ", ".join(here[node]["host"] for node in sorted(here))
    says = f"{hosts} see each other's files; of {nodes} that create one, one does"
    return Finding(AREA, "shared filesystem", "ok", says)
