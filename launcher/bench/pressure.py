"""Pressure: what a fleet asks of the shared filesystem and of Slurm, from what the code does and how often. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.bench.fleet import Course, Fleet
from launcher.ledger.journal import PAUSE_S
from launcher.runtime.exporter import EVERY_S
from launcher.runtime.heartbeat import BEAT_S
from launcher.runtime.watchdog import BEAT_S as AGENT_BEAT_S
from launcher.runtime.watchdog import POLL_S

SYNC_S = 0.005  # of one fdatasync on a shared filesystem
START_S = 60.0  # over which the ranks of all worlds come up
MAX_ARRAY = 1000  # tasks of one Slurm array: MaxArraySize is 1001 by default
JOURNAL_ROW = 1000  # bytes

# What a shared filesystem or a controller is taken to do per second, well-kept ones more, an NFS server less.
CAPACITY = {
    "creates and renames": 5_000.0,
    "opens and stats": 50_000.0,
    "syncs": 5_000.0,
    "bytes read": 20e9,
    "at start: opens": 50_000.0,
    "at start: bytes read": 20e9,
    "at the end: bytes read": 20e9,
    "Slurm: jobs per second": 10.0,
}


@dataclass(frozen=True)
class Load:
    """``per_s`` of something, and the share of what was taken to be possible."""

    what: str
    per_s: float
    share: float


def loads(
    fleet: Fleet, course: Course, ranks: int, weights_bytes: int, metrics: bool = True
) -> list[Load]:
    """Per second over the run, the heaviest first. ``ranks`` of a world; every replica reads ``weights_bytes``
    once when its world starts, those of one node together. ``metrics``: each world's agent reads what is new in all journals every 10 s."""
    worlds, journals = fleet.worlds, fleet.worlds * fleet.replicas
    attempts = worlds + course.restarts
    every_rank, agents = worlds * ranks, worlds * fleet.nodes
    seconds = max(course.seconds, 1.0)
    claims = (course.claims + course.refused) / seconds
    exporting = worlds / EVERY_S * metrics
    done = fleet.rows / seconds
    found = {
        "creates and renames": 2 * (every_rank / BEAT_S + agents / AGENT_BEAT_S + exporting)
        + claims,
        # An agent looks at the drain marker, its ranks, and the other agents; a rank at the marker. A claim lists the
        # attempts, and a refused one all claims.
        "opens and stats": agents / POLL_S * (1 + ranks / fleet.nodes + fleet.nodes - 1)
        + every_rank / BEAT_S
        + claims * attempts
        + exporting * (journals + attempts + every_rank),
        "syncs": journals * min(fleet.rows_per_s, 1 / (PAUSE_S + SYNC_S)),
        "bytes read": exporting * done * EVERY_S * JOURNAL_ROW,
        "at start: opens": journals * (journals + attempts) / START_S,
        "at start: bytes read": worlds * min(fleet.replicas, fleet.nodes) * weights_bytes / START_S,
        "at the end: bytes read": worlds * fleet.rows * JOURNAL_ROW / START_S,
        "Slurm: jobs per second": (-(-worlds // MAX_ARRAY) + course.restarts) / seconds,
    }
    listed = [Load(what, per_s, per_s / CAPACITY[what]) for what, per_s in found.items()]
    return sorted(listed, key=lambda load: -load.share)
