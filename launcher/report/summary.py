"""summary.json: what a run did and where its time went, measured beside predicted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from launcher.ledger import Counts
from launcher.measure.bubble import SHARES, shares
from launcher.measure.spans import COMPUTE
from launcher.plan.plan import DevicePlan, Plan
from launcher.report.compare import compare, expected_of_device, expected_of_run
from launcher.report.measured import Measured, length_of_union
from launcher.report.peaks import compute_devices, use_of_peaks
from launcher.report.sofar import behind
from launcher.run import Run

FIGURES = ("peak_memory_bytes", "weights_bytes", "kv_bytes", "bytes_read", "load_s")
OF_RANK = ("load_s",)  # true of each of its devices where a rank owns several

Value = TypeVar("Value")


def build_summary(run: Run, counts: Counts) -> dict[str, Any]:
    """The document described in docs/run-directory.md, from the plan, the ranks' figures and the timelines.

    A figure that nobody measured is None, but for a stage's ``weights_bytes``, which is then the plan's; ``ranks`` has
    those of ranks with several devices, all of them together. Over several attempts, ``wall_s`` is the time in which at least one of
    them was alive and ``generate_s`` that in which at least one replica was between its first and last
    step, so that waiting in a queue counts as neither. Rows done twice count once in ``tokens``.
    """
    plan = Plan.read(run.plan)
    attempts = Measured.of(run, *run.list_attempts())
    stages = [
        _stage([m for m in attempts if m.attempt.world == world], plan, device, world)
        for world in sorted({m.attempt.world for m in attempts} or {0})
        for device in compute_devices(plan)
    ]
    alive = [m.alive for m in attempts if m.alive]
    generate_s = length_of_union(w for m in attempts for w in m.windows) or None
    found = {
        "name": run.name,
        "task": plan.task,
        "rows": {"total": counts.total, "ok": counts.ok, "failed": counts.failed},
        "tokens": {"prompt": counts.prompt_tokens, "completion": counts.completion_tokens},
        "wall_s": length_of_union(alive) or None,
        "load_s": _most(stage["load_s"] for stage in stages),
        "generate_s": generate_s,
        "tokens_per_s": counts.completion_tokens / generate_s if generate_s else None,
        "rows_per_s": counts.ok / generate_s if generate_s else None,
        "new_tokens": counts.completion_tokens,
        "ttft_s": _first_token(attempts),
        "attempts": len(attempts),
        "restarts": len(attempts) - len({m.attempt.world for m in attempts}),
        "stragglers": [
            each for m in attempts for each in behind(list(map(vars, m.ranks.values())))
        ],
        "strategy": plan.strategy,
        "schedule": plan.schedule,
        "device": plan.device,
        "dtype": plan.dtype,
        "world_size": plan.world_size,
        "utilization": _mean(stage["busy"] for stage in stages),
        "bubble": _mean(stage["bubble"] for stage in stages),
        **use_of_peaks(plan, attempts, counts.prompt_tokens + counts.completion_tokens),
        "gpu_hours": _gpu_hours(plan, attempts),
        **_weights_read(attempts, counts.completion_tokens, generate_s),
        "stages": stages,
        "ranks": list(_together(attempts, plan)),
        "predicted": expected_of_run(plan),
    }
    return {**found, "compared": compare(plan, found)}


def _stage(attempts: list[Measured], plan: Plan, device: DevicePlan, world: int) -> dict[str, Any]:
    """One entry of ``stages``: a device over all attempts of its world, figures from the last that has them."""
    mates = [d for d in compute_devices(plan) if d.rank == device.rank and d.weights_bytes]
    # Shards of one rank compute at the same time; what it measured is true of each of them.
    told_apart = len({d.stage for d in mates}) <= 1 or any(
        len({stage for rank, stage in m.accounts if rank == device.rank}) > 1 for m in attempts
    )
    gpu = _place_among_gpus(plan, device)
    figures = {
        name: _last(
            m.figure(name, device, gpu, mates == [device] or name in OF_RANK) for m in attempts
        )
        for name in FIGURES
    }
    hosts = [m.ranks[device.rank].host for m in attempts if device.rank in m.ranks]
    return {
        "world": world,
        "replica": device.replica,
        "stage": device.stage,
        "shard": device.shard,
        "rank": device.rank,
        "host": _last(hosts),
        "device": device.device,
        "layers": device.layers,
        **_shares(attempts, device, told_apart),
        **figures,
        "weights_bytes": figures["weights_bytes"] or device.weights_bytes,
        **_compute_seconds(attempts, device, told_apart),
        "predicted": expected_of_device(device),
    }


def _place_among_gpus(plan: Plan, device: DevicePlan) -> int | None:
    """Which of its rank's GPUs it is, as the rank counts them: by number, whatever layers they hold."""
    own = [d.device for d in plan.devices if d.rank == device.rank and d.device.startswith("cuda")]
    own.sort(key=lambda name: int(name.partition(":")[2] or 0))
    return own.index(device.device) if device.device in own else None


def _together(attempts: list[Measured], plan: Plan) -> Iterable[dict[str, Any]]:
    """What is measured of a rank with several devices as one: of each of these it may not be known."""
    for world in sorted({m.attempt.world for m in attempts}):
        own = [m for m in attempts if m.attempt.world == world]
        for rank in sorted({device.rank for device in plan.devices}):
            devices = [d.device for d in compute_devices(plan) if d.rank == rank]
            told = [m.ranks[rank] for m in own if rank in m.ranks]
            if len(devices) > 1 and told:
                figures = {name: _last(t.figures.get(name) for t in told) for name in FIGURES}
                place = {"world": world, "rank": rank, "host": told[-1].host, "devices": devices}
                yield place | figures


def _shares(
    attempts: list[Measured], device: DevicePlan, told_apart: bool
) -> dict[str, float | None]:
    """Shares over the windows of all attempts; all is no work where a device holds nothing or got no row."""
    unit = (device.rank, device.stage)
    found = [m.accounts[unit] for m in attempts if unit in m.accounts]
    if found and told_apart:
        return dict(shares(sum(found[1:], start=found[0])))
    empty = not device.weights_bytes and device.layers is None
    if empty or any(device.replica in m.idle for m in attempts):
        return {name: float(name == "no_work") for name in SHARES}
    return dict.fromkeys(SHARES)


def _compute_seconds(
    attempts: list[Measured], device: DevicePlan, told_apart: bool
) -> dict[str, float | None]:
    """``prefill_s`` and ``decode_s``, exact however long the run."""
    found = [m.totals.get((device.rank, device.stage)) for m in attempts] if told_apart else []
    known = [totals for totals in found if totals]
    return {
        f"{kind}_s": sum(totals.get(kind, (0.0, 0))[0] for totals in known) if known else None
        for kind in COMPUTE
    }


def _first_token(attempts: list[Measured]) -> dict[str, float | None]:
    """Seconds from a row's admission to its first token: mean over rows, p50 and p95 of the slowest rank."""
    ranks = [status for m in attempts for status in m.ranks.values()]
    weighted = [
        (status.figures["ttft_s_mean"], status.rows_done)
        for status in ranks
        if "ttft_s_mean" in status.figures and status.rows_done
    ]
    rows = sum(weight for _, weight in weighted)
    return {
        "mean": sum(mean * weight for mean, weight in weighted) / rows if rows else None,
        "p50": _most(status.figures.get("ttft_s_p50") for status in ranks),
        "p95": _most(status.figures.get("ttft_s_p95") for status in ranks),
    }


def _weights_read(
    attempts: list[Measured], tokens: int, generate_s: float | None
) -> dict[str, float | None]:
    """Of a model that is streamed: bytes of weights read per new token, and per second. ``read_rate`` is over
    the time of generating and ``storage_rate`` over that in which a rank's thread was reading: what the storage gives."""
    ranks = [s.figures for m in attempts for s in m.ranks.values()]
    read = [f for f in ranks if f.get("weights_read_s")]
    if not read or not generate_s:
        return {"read_bytes_per_token": None}
    total = sum(figures["weights_read_bytes"] for figures in read)
    return {
        "read_bytes_per_token": total / tokens if tokens else None,
        "read_rate": total / generate_s,
        "storage_rate": sum(f["weights_read_bytes"] / f["weights_read_s"] for f in read),
    }


def _gpu_hours(plan: Plan, attempts: list[Measured]) -> float | None:
    alive = [end - begin for m in attempts if m.alive for begin, end in [m.alive]]
    gpus = plan.nodes * plan.gpus_per_node
    return sum(alive) / 3600 * gpus if alive and gpus else None


def _last(values: Iterable[Value | None]) -> Value | None:
    found = [value for value in values if value is not None]
    return found[-1] if found else None


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _most(values: Iterable[float | None]) -> float | None:
    return max(_known(values), default=None)


def _mean(values: Iterable[float | None]) -> float | None:
    known = _known(values)
    return sum(known) / len(known) if known else None
