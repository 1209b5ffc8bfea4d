"""`launcher bench scale`: the plan of one world played as a fleet of many, and what that asks of the cluster. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from launcher.bench.fleet import Fleet, simulate
from launcher.bench.pressure import CAPACITY, START_S, SYNC_S, loads
from launcher.errors import UsageError
from launcher.plan.plan import Plan
from launcher.plan.subject import full_part
from launcher.report.compare import tokens_of

DAY_S = 86400.0
READ_BYTES_PER_S = 2e9  # of a node, while it loads


@dataclass(frozen=True)
class Assumed:
    """What a plan does not say. ``tokens_per_s`` is one world's, where it is not to be the plan's."""

    rows: int
    node_mtbf_days: float | None = 100.0
    stragglers: float = 0.02
    slowdown: float = 1.5
    detect_s: float = 300.0
    queue_s: float = 600.0
    seed: int = 0
    tokens_per_s: float | None = None


def study(plan: Plan, worlds: Sequence[int], assumed: Assumed, max_restarts: int) -> dict[str, Any]:
    """Of each number of worlds: the fleet, its course, its load on the cluster, and the same without failures and
    stragglers. Rows have as many tokens as the plan's on average. Raises UsageError where nothing says how fast a world is."""
    one = _fleet(plan, assumed, max_restarts)
    found = []
    for number in worlds:
        fleet = replace(one, worlds=number, load_s=_load_s(plan, one, number))
        course = simulate(fleet)
        plain = simulate(replace(fleet, node_mtbf_s=None, stragglers=0.0))
        load = loads(fleet, course, plan.world_size, plan.weights_bytes)
        found.append(
            {
                "worlds": number,
                "nodes": number * fleet.nodes,
                "gpus": number * plan.nodes * plan.gpus_per_node,
                **asdict(course),
                "undisturbed_s": plain.seconds,
                "gpu_hours": course.seconds * number * plan.nodes * plan.gpus_per_node / 3600,
                "loads": [asdict(each) for each in load],
            }
        )
    return {
        "rows": assumed.rows,
        "rows_per_s": one.rows_per_s * one.replicas,
        "assumptions": _told(one, assumed, plan),
        "fleets": found,
    }


def _fleet(plan: Plan, assumed: Assumed, max_restarts: int) -> Fleet:
    """Of one world."""
    speed = _speed(plan, assumed)
    if not speed:
        raise UsageError(
            "the plan does not say how many tokens per second a world makes",
            where="--tokens-per-s",
            fix="give it, or a spec whose plan fits",
        )
    replicas, tokens = plan.replicas, _row_tokens(plan)
    days = assumed.node_mtbf_days
    return Fleet(
        worlds=1,
        nodes=plan.nodes,
        replicas=replicas,
        rows=assumed.rows,
        rows_per_s=speed / tokens / replicas,
        slots=plan.batch.groups * plan.batch.slots,
        node_mtbf_s=days * DAY_S if days else None,
        stragglers=assumed.stragglers,
        slowdown=assumed.slowdown,
        detect_s=assumed.detect_s,
        queue_s=assumed.queue_s,
        max_restarts=max_restarts,
        seed=assumed.seed,
    )


def _speed(plan: Plan, assumed: Assumed) -> float:
    """Tokens per second of a world that has rows enough, as the plan's input may not have; 0 where that is not known."""
    part = full_part(plan.rows, plan.worlds * plan.replicas) if plan.rows else 1.0
    return assumed.tokens_per_s or (plan.predicted.tokens_per_s or 0.0) / part


def _row_tokens(plan: Plan) -> float:
    """New tokens of a row, or scored ones, all of its answers together. Raises UsageError where the plan has none."""
    if not plan.predicted.new_tokens:
        raise UsageError(
            "rows of a script have no tokens",
            where="task",
            fix="give a spec of task generate or score",
        )
    return plan.predicted.new_tokens / max(1, plan.rows)


def _load_s(plan: Plan, fleet: Fleet, worlds: int) -> float:
    """Until all ranks have their weights: as fast as their nodes read, or all of them together can."""
    size = plan.weights_bytes * min(fleet.replicas, fleet.nodes)  # once per node and copy of it
    return START_S + max(
        size / plan.nodes / READ_BYTES_PER_S, worlds * size / CAPACITY["bytes read"]
    )


def _told(fleet: Fleet, assumed: Assumed, plan: Plan) -> list[str]:
    speed = _speed(plan, assumed)
    whose = "given" if assumed.tokens_per_s else "the plan's"
    days = assumed.node_mtbf_days
    return [
        f"{assumed.rows:,} rows of {_row_tokens(plan):,.0f} {tokens_of(plan.task)}; a world is {_many(fleet.nodes, 'node')}, "
        f"{_many(plan.world_size, 'rank')}, {_many(fleet.replicas, 'replica')}, and makes {speed:,.0f} tokens/s ({whose})",
        f"a node fails every {days:g} days, which Slurm notices after {fleet.detect_s:.0f} s; its world runs again "
        f"{fleet.queue_s:.0f} s later, {fleet.max_restarts} times at most"
        if days
        else "no node fails",
        f"{assumed.stragglers:.0%} of the worlds are {assumed.slowdown:g} times as slow",
        f"worlds start within {START_S:.0f} s and then load, at {READ_BYTES_PER_S / 1e9:g} GB/s per node and "
        f"{CAPACITY['bytes read'] / 1e9:g} GB/s in all",
        f"a sync takes {SYNC_S * 1e3:g} ms; shares are of {_capacity()}",
    ]


def _capacity() -> str:
    return ", ".join(f"{limit:,.0f} {what}" for what, limit in CAPACITY.items() if ":" not in what)


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
