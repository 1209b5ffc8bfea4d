"""Runs that never ran, with the figures and timelines that they would have left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.measure.bubble import SHARES
from launcher.measure.spans import Recorder
from launcher.plan.plan import Batch, DevicePlan, Placement, Plan, Predicted
from launcher.records import Attempt, RankStatus
from launcher.report.summary import build_summary
from launcher.run import Run, write_json

START = 1_700_000_000.0
GIB = 2**30
Span = tuple[str, float, float]


@dataclass
class Counts:
    total: int = 100
    ok: int = 98
    failed: int = 2
    prompt_tokens: int = 5000
    completion_tokens: int = 1200


def device(rank: int, name: str = "cpu", **changes: Any) -> DevicePlan:
    defaults = {
        "replica": rank,
        "stage": 0,
        "layers": (0, 7),
        "weights_bytes": GIB,
        "kv_bytes": 1000,
    }
    sizes = {"activation_bytes": 10, "peak_bytes": GIB + 1010, "capacity_bytes": None}
    return DevicePlan(rank=rank, device=name, **{**defaults, **sizes, **changes})


def plan(devices: Sequence[DevicePlan], **changes: Any) -> Plan:
    ranks = sorted({each.rank for each in devices})
    values: dict[str, Any] = {
        "fits": True,
        "reasons": [],
        "strategy": "sequential",
        "device": "cpu",
        "dtype": "float32",
        "parameters": 1000,
        "weights_bytes": GIB,
        "kv_bytes_per_token": 64,
        "world_size": len(ranks),
        "ranks_per_node": len(ranks),
        "nodes": 1,
        "devices": devices,
        "placements": [Placement(rank=rank, replica=rank, node=0) for rank in ranks],
        "batch": Batch(groups=1, slots=4, max_length=64, prefill_chunk=32),
        "predicted": Predicted(tokens_per_s=500.0),
    }
    return Plan(**{**values, **changes})


class Scene:
    """A run directory and what its ranks left in it."""

    def __init__(self, folder: Path, made: Plan) -> None:
        self.run = Run.create(folder / "demo-0001")
        self.run.plan.write_text(made.model_dump_json())

    def attempt(self, number: int = 1, world: int = 0, started: float = 0.0) -> Attempt:
        attempt = Attempt(world, number)
        self.run.attempt_dir(attempt).mkdir()
        write_json(self.run.attempt_file(attempt, "attempt"), {"started": START + started})
        return attempt

    def rank(
        self, attempt: Attempt, rank: int, updated: float, replica: int | None = None, **known: Any
    ) -> None:
        """A rank's last status. ``known`` are its figures, and ``rows_done``."""
        status = RankStatus(
            attempt.name, rank, rank if replica is None else replica, f"node{rank}", 1
        )
        status.updated, status.phase = START + updated, "finished"
        status.rows_done = known.pop("rows_done", 0)
        status.figures = known
        write_json(self.run.status(attempt, rank), asdict(status))

    def spans(
        self,
        attempt: Attempt,
        rank: int,
        spans: list[Span],
        replica: int | None = None,
        stage: int = 0,
    ) -> None:
        clock = {"monotonic": 0.0, "epoch": START, "offset": 0.0}
        owner = {"rank": rank, "replica": rank if replica is None else replica, "host": "h"}
        header = {**owner, "attempt": attempt.name, "clock": clock}
        with Recorder(self.run.timeline(attempt, rank), header) as recorder:
            for kind, start, end in spans:
                recorder.add(kind, start, end, stage)

    def summary(self) -> dict[str, Any]:
        summary = build_summary(self.run, Counts())
        json.dumps(summary)
        return summary


def shares_of(stage: dict[str, Any]) -> dict[str, float]:
    return {name: round(stage[name], 6) for name in SHARES if stage[name]}
