"""Plans, summaries and states that are shown in tests, and what a terminal makes of them."""

from __future__ import annotations

import io
import time
from typing import Any

from rich.console import Console, RenderableType

from launcher.measure.bubble import SHARES
from launcher.plan.plan import Batch, DevicePlan, Placement, Plan, Predicted

GIB = 2**30


def text(shown: RenderableType, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(shown)
    written: str = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(len(line) <= width for line in written.splitlines())
    return written


def lines(shown: RenderableType, width: int = 100) -> list[str]:
    return [line.rstrip() for line in text(shown, width).splitlines()]


def device(replica: int, stage: int, weights: float, layers: tuple[int, int] | None) -> DevicePlan:
    return DevicePlan(
        replica=replica,
        stage=stage,
        rank=replica,
        device=f"cuda:{stage}",
        layers=layers,
        weights_bytes=int(weights * GIB),
        kv_bytes=GIB if layers else 0,
        activation_bytes=GIB // 2 if layers else 0,
        peak_bytes=int((weights + (1.5 if layers else 0)) * GIB),
        capacity_bytes=70 * GIB,
    )


def plan(replicas: int = 1, **changes: Any) -> Plan:
    """Llama-2-70B in bf16 over four GPUs of 70 GiB, two of which stay empty."""
    devices = [
        device(replica, stage, weights, layers)
        for replica in range(replicas)
        for stage, (weights, layers) in enumerate(
            [(67.3, (0, 41)), (61.2, (42, 79)), (0, None), (0, None)]
        )
    ]
    values: dict[str, Any] = {
        "fits": True,
        "reasons": ["GPUs cuda:2 and cuda:3 stay empty"],
        "strategy": "sequential",
        "device": "cuda",
        "dtype": "bfloat16",
        "parameters": 68_976_648_192,
        "weights_bytes": 137_953_296_384,
        "kv_bytes_per_token": 327_680,
        "world_size": replicas,
        "ranks_per_node": 1,
        "nodes": replicas,
        "gpus_per_node": 4,
        "devices": devices,
        "placements": [Placement(rank=r, replica=r, node=r) for r in range(replicas)],
        "batch": Batch(groups=1, slots=16, max_length=400, prefill_chunk=256),
    }
    return Plan(**{**values, **changes})


def stage(replica: int = 0, number: int = 0, **changes: Any) -> dict[str, Any]:
    shares = dict(zip(SHARES, (0.6, 0.1, 0.0, 0.25, 0.04, 0.01), strict=True))
    place = {"world": 0, "replica": replica, "stage": number, "rank": number, "host": "node1"}
    sizes = {"peak_memory_bytes": 3 * GIB, "weights_bytes": GIB, "bytes_read": GIB, "load_s": 2.0}
    return {**place, "device": f"cuda:{number}", "layers": [0, 7], **shares, **sizes, **changes}


def summary(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "name": "demo-0001",
        "rows": {"total": 1000, "ok": 998, "failed": 2},
        "tokens": {"prompt": 31_002, "completion": 17_208},
        "wall_s": 3725.0,
        "load_s": 47.25,
        "generate_s": 3600.0,
        "tokens_per_s": 478.4,
        "ttft_s": {"mean": 0.351, "p50": 0.312, "p95": 0.81},
        "attempts": 2,
        "restarts": 1,
        "strategy": "pipeline",
        "schedule": "ring",
        "device": "cuda",
        "dtype": "bfloat16",
        "world_size": 2,
        "utilization": 0.6,
        "bubble": 0.25,
        "flop_utilization": None,
        "bandwidth_utilization": None,
        "gpu_hours": 2.07,
        "stages": [stage(0, 0), stage(0, 1)],
        "predicted": Predicted(tokens_per_s=510, wall_s=3500, bubble=0.02).model_dump(),
    }
    return {**values, **changes}


def state(**changes: Any) -> dict[str, Any]:
    now = time.time()
    attempt = {"name": "w0000-a0001", "world": 0, "host": "node1", "job_id": "77_0", "started": 0.0}
    rank = {"attempt": "w0000-a0001", "rank": 0, "replica": 0, "host": "node1", "phase": "running"}
    seen = {"phase_since": now - 90, "updated": now, "rows_done": 410, "rows_failed": 2}
    seen |= {"last_phase": "running", "heard_s": 0.0}
    values: dict[str, Any] = {
        "run": "demo-0001",
        "path": "/runs/demo-0001",
        "state": "running",
        "rows": {"total": 1000, "done": 412, "failed": 2},
        "tokens_per_s": 812.3,
        "eta_s": 312.0,
        "scheduler": "slurm",
        "jobs": {"77_0": "running", "77_1": "pending"},
        "attempts": [
            {**attempt, "draining": None, "outcome": None, "state": "running", "error": None}
        ],
        "ranks": [{**rank, **seen, "completion_tokens": 20_000}],
        "failure": None,
    }
    return {**values, **changes}


def pipelined(nodes: int = 2) -> Plan:
    """Eight stages over two nodes, with what is predicted of each."""
    devices = [
        device(0, number, 15.9, (10 * number, 10 * number + 9)).model_copy(
            update={"rank": number, "utilization": 0.91, "bubble": 0.086}
        )
        for number in range(8)
    ]
    placements = [Placement(rank=r, replica=0, node=r * nodes // 8, stage=r) for r in range(8)]
    return plan(
        strategy="pipeline", schedule="ring", devices=devices, placements=placements, nodes=nodes
    )
