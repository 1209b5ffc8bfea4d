"""The two examinations: of the machine that one submits from, and of a compute node or several."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from launcher.doctor import gpus, hub, ranks, slurm, software, storage
from launcher.doctor.finding import Finding
from launcher.doctor.meeting import Meeting
from launcher.plan.hardware import gpus_here
from launcher.runtime import network
from launcher.runtime.launch import World

FINDINGS_S = 300.0  # longer than any check of a node takes


def login_node(folder: Path) -> list[Finding]:
    """What matters where runs are submitted; ``folder`` is where they go."""
    cluster = slurm.is_here()
    return [
        *software.examine(),
        *slurm.examine(),
        *storage.examine(folder, cluster),
        *hub.examine(),
    ]


def compute_node(folder: Path) -> list[Finding] | None:
    """What matters where ranks run, of all nodes of this `srun`; None on all but the first of them."""
    meeting = Meeting(storage.existing(folder))
    if meeting.spare:
        return None
    try:
        meeting.open()
    except OSError:
        return [storage.promises(meeting.folder.parent)]
    try:
        return _meet(meeting)
    finally:
        meeting.close()


def _meet(meeting: Meeting) -> list[Finding] | None:
    address = network.own_address(None) if meeting.nodes > 1 else "127.0.0.1"
    gpus_found = len(gpus_here())
    here = {
        "host": socket.gethostname(),
        "won": meeting.race(),
        "address": address,
        "port": network.free_port(address),
        "ranks": gpus_found or (1 if meeting.nodes > 1 else 2),
    }
    meeting.say("here", here)
    found = [*software.examine(), *gpus.examine(), storage.promises(meeting.folder.parent)]
    shared, heard = meeting.agree(here)
    if shared.status == "ok":
        count = sum(said["ranks"] for said in heard.values())
        meet = World(count, meeting.nodes, meeting.node, heard[0]["address"], int(heard[0]["port"]))
        found.append(ranks.examine(meet, meeting.folder))
    if meeting.nodes == 1:
        return found
    found.append(shared)
    named = [replace(finding, host=socket.gethostname()) for finding in found]
    if meeting.node == 0:
        return named + _others(meeting, sorted(heard.keys() - {0}))
    meeting.say("findings", {"found": [asdict(finding) for finding in named]})
    # Node 0 speaks for those that it knows of; who was late, or sees nothing of it, speaks for itself.
    return None if {0, meeting.node} <= heard.keys() else named


def _others(meeting: Meeting, nodes: list[int]) -> list[Finding]:
    """What the other nodes found: they have said so when this returns, or will not."""
    heard = meeting.hear("findings", FINDINGS_S, nodes)
    silent = [
        Finding("nodes", f"node {node}", "problem", "fell silent", "look at that task's stderr")
        for node in nodes
        if node not in heard
    ]
    return [Finding(**row) for node in sorted(heard) for row in heard[node]["found"]] + silent


def as_document(findings: Iterable[Finding], kind: str) -> dict[str, Any]:
    """The JSON form. ``ok``: no check found a problem."""
    rows = [asdict(finding) for finding in findings]
    return {
        "host": os.uname().nodename,
        "kind": kind,
        "ok": all(row["status"] != "problem" for row in rows),
        "findings": rows,
    }
