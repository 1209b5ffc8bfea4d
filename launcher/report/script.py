"""What a person sees of a script's run in the terminal: it has ranks and attempts, and no rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from launcher.job import accelerate
from launcher.plan.plan import Plan
from launcher.report import cells, units


def script_plan(plan: Plan) -> RenderableType:
    """How many ranks run where, and what accelerate is told."""
    machines = f"{cells.plural(plan.nodes, 'node')}"
    machines += f" x {cells.plural(plan.gpus_per_node, 'GPU')}" if plan.gpus_per_node else ", CPU"
    table = cells.table("accelerate", "")
    for key, value in _flat(plan.accelerate or {}):
        table.add_row(key, Text(cells.clean(value)))
    reasons = [Text.assemble(("! ", "yellow"), cells.clean(reason)) for reason in plan.reasons]
    ranks = f"{cells.plural(plan.ranks_per_node, 'rank')} on each"
    head = Text.assemble(("script", "bold"), f": {machines}, {ranks}")
    return Group(head, Text(), table, *reasons)


def script_summary(summary: Mapping[str, Any]) -> RenderableType:
    """What is known of a script that has ended well."""
    facts = [
        f"{cells.plural(summary['world_size'], 'rank')} on {summary['device']}",
        f"mixed precision {summary['dtype']}",
        cells.plural(summary["attempts"], "attempt"),
        f"wall time {units.duration(summary['wall_s'])}",
    ]
    if summary["gpu_hours"] is not None:
        facts.append(f"{units.amount(summary['gpu_hours'])} GPU hours")
    return Text.assemble((cells.clean(summary["name"]), "bold"), ": ", ", ".join(facts))


def _flat(options: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Those that say something: what every launch has is left out."""
    found: list[tuple[str, Any]] = []
    for key, value in options.items():
        found += list(value.items()) if isinstance(value, Mapping) else [(key, value)]
    ours = accelerate.ALWAYS | accelerate.OUR_DEEPSPEED
    return [(key, value) for key, value in found if key not in ours]
