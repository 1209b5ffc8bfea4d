"""Jobs that wait at a gate on the dev cluster, and their ranks' processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cluster import Cluster
from jobs import mixed_rows, write_job
from kills import Victim, victims

ROWS, SHARE = (
    160,
    20,
)  # of a run, as many as whole_run has, and of a rank that then waits at the gate
PIPELINE = {
    "parallel": {"strategy": "pipeline", "stages": 2},
    "resources": {"device": "cpu", "nodes": 2},
}
REPLICAS = {
    "parallel": {"strategy": "sequential", "replicas": 2},
    "resources": {"device": "cpu", "nodes": 2},
}


def job(folder: Path, **sections: Any) -> Path:
    return write_job(folder, mixed_rows(ROWS), **sections)


def rank_of(cluster: Cluster, run: Path, number: int) -> Victim:
    """The process of a rank of the first attempt."""
    status = json.loads((run / "status" / f"w0000-a0001-r{number:04d}.json").read_text())
    (found,) = [
        victim
        for victim in victims(cluster, run)
        if (victim.role, victim.node) == ("rank", status["host"])
    ]
    return found
