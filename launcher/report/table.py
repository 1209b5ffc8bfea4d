"""What a person sees in the terminal: rich renderables of plans, summaries, runs and states. Printing is the CLI's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from launcher.plan.plan import DevicePlan, Plan
from launcher.report import bars, cells, units
from launcher.report.choice import choice_table
from launcher.report.compare import tokens_of
from launcher.report.script import script_plan, script_summary
from launcher.report.states import runs_table, status_table

__all__ = ["plan_table", "runs_table", "status_table", "summary_table"]

Summary = Mapping[str, Any]


def plan_table(plan: Plan) -> RenderableType:
    """What sits where, how full each device gets, whether it fits or why not, and what is predicted."""
    if plan.accelerate is not None:
        return script_plan(plan)
    verdict = ("fits", "bold green") if plan.fits else ("does not fit", "bold red")
    machines = f"{cells.plural(plan.nodes, 'node')}"
    machines += f" x {cells.plural(plan.gpus_per_node, 'GPU')}" if plan.gpus_per_node else ", CPU"
    facts = [
        cells.split(plan.strategy, plan.schedule),
        f"{units.short(plan.parameters)} parameters",
        f"{units.size(plan.weights_bytes)} in {plan.dtype}",
        f"{machines}, {cells.plural(plan.world_size, 'rank')}",
    ]
    style = "yellow" if plan.fits else "red"
    reasons = [Text.assemble(("! ", style), cells.clean(reason)) for reason in plan.reasons]
    return Group(
        Text.assemble(verdict, ": ", ", ".join(facts)),
        Text(),
        cells.Adaptive(lambda wide: _devices(plan, wide)),
        Text(),
        Text(_batch_line(plan)),
        *(_predicted_line(plan) if plan.fits else []),
        *reasons,
        *choice_table(plan.candidates),
    )


def summary_table(summary: Summary) -> RenderableType:
    """What a run did, measured beside predicted, and where each stage's time went. From summary.json."""
    if summary["strategy"] == "script":
        return script_summary(summary)
    facts = [
        cells.split(summary["strategy"], summary["schedule"]),
        f"{cells.plural(summary['world_size'], 'rank')} on {summary['device']}",
        str(summary["dtype"]),
        cells.plural(summary["attempts"], "attempt"),
    ]
    return Group(
        Text.assemble((cells.clean(summary["name"]), "bold"), ": ", ", ".join(facts)),
        Text(),
        _measured(summary),
        Text(),
        cells.Adaptive(lambda wide: _stages(summary["stages"], wide)),
        *map(_straggler, summary.get("stragglers", [])),
    )


def _straggler(rank: Mapping[str, Any]) -> RenderableType:
    who = f"rank {rank['rank']} on {cells.host(rank['host'])}"
    return Text(f"{who} did {units.percent(rank['share'])} of the rows that others did", "yellow")


def _devices(plan: Plan, wide: bool) -> RenderableType:
    nodes = {placement.rank: placement.node for placement in plan.placements}
    shown, replicas = _distinct(plan.devices)
    alone = len({device.replica for device in shown}) == 1
    number = cells.numbers(map(vars, plan.devices))
    # Where stages take turns or wait for each other, how busy each is takes the room of less telling columns.
    shares = plan.schedule is not None and any(d.utilization is not None for d in shown)
    roomy, meter = wide or not shares, wide and not shares
    columns = ["stage", "device", "layers", ">weights", ">KV cache", *[">activations"] * roomy]
    columns += [">busy", ">bubble"] * shares + [""] * meter + [">peak of capacity"]
    table = cells.table(*columns, wide=wide)
    for device in shown[: cells.MOST_ROWS]:
        node = f"node {nodes.get(device.rank, 0)} " if plan.nodes > 1 else ""
        peak, capacity = device.peak_bytes, device.capacity_bytes
        row: list[RenderableType] = [
            number(vars(device)) if alone else f"{device.replica}.{number(vars(device))}",
            node + device.device,
            cells.layers(device.layers, device.weights_bytes),
            units.size(device.weights_bytes),
            units.size(device.kv_bytes),
            *[units.size(device.activation_bytes)] * roomy,
            *[units.percent(device.utilization), units.percent(device.bubble)] * shares,
            *[bars.meter(peak / capacity) if capacity else Text()] * meter,
        ]
        style = "bold red" if capacity is not None and peak > capacity else ""
        text = units.size(peak) if capacity is None else units.size_of(peak, capacity)
        table.add_row(*row, Text(text, style))
    alike = [Text(f"and {cells.plural(replicas - 1, 'more replica')} like it", "dim")] * (
        replicas > 1
    )
    narrow = [Text("activations: in a wider terminal, or with --json", "dim")] * (not roomy)
    return Group(table, *alike, *cells.more(len(shown), "plan.json"), *narrow)


def _distinct(devices: Sequence[DevicePlan]) -> tuple[list[DevicePlan], int]:
    """One replica's devices and the number of replicas where all are alike, else all devices and 1."""
    replicas: dict[int, list[DevicePlan]] = {}
    for device in devices:
        replicas.setdefault(device.replica, []).append(device)
    looks = {
        str([d.model_dump(exclude={"replica", "rank", "device"}) for d in each])
        for each in replicas.values()
    }
    if len(looks) > 1:
        return list(devices), 1
    return next(iter(replicas.values()), []), len(replicas)


def _batch_line(plan: Plan) -> str:
    batch = plan.batch
    slots = batch.groups * batch.slots
    kv_bytes = slots * batch.max_length * plan.kv_bytes_per_token
    # A device's KV cache is shared evenly by the slots, so what is free would hold so many more of them.
    spare = [
        (device.capacity_bytes - device.peak_bytes) * slots // device.kv_bytes
        for device in plan.devices
        if device.capacity_bytes and device.kv_bytes
    ]
    room = min(spare, default=0) if plan.fits else 0
    return (
        f"batch: {cells.plural(batch.groups, 'group')} of {cells.plural(batch.slots, 'slot')} of "
        f"{cells.plural(batch.max_length, 'token')}; KV cache {units.size(kv_bytes)} per replica "
        f"({units.size(plan.kv_bytes_per_token)} per token)"
        + (f", room for {cells.plural(room, 'more slot')}" if room > 0 else "")
    )


def _predicted_line(plan: Plan) -> list[RenderableType]:
    p = plan.predicted
    known = [
        (p.tokens_per_s, f"{units.amount(p.tokens_per_s)} tok/s"),
        (p.wall_s, f"done in {units.duration(p.wall_s)}"),
        (p.utilization, f"{units.percent(p.utilization)} busy"),
        (p.bubble, f"{units.percent(p.bubble)} bubble"),
        (p.gpu_hours, f"{units.amount(p.gpu_hours)} GPU hours"),
    ]
    parts = [text for value, text in known if value is not None]
    figures = [Text(f"from figures: {plan.rates}", "dim")] * (p.tokens_per_s is not None)
    return [Text(f"predicted: {', '.join(parts)}"), *figures] if parts else []


def _measured(summary: Summary) -> RenderableType:
    rows, ttft, predicted = summary["rows"], summary["ttft_s"], summary["predicted"]
    table = cells.table("", ">measured", ">predicted", ">off", "")

    def add(label: str, name: str, show: Callable[[Any], str], note: str = "") -> None:
        value, expected = summary.get(name), predicted.get(name)
        if value is not None or expected is not None:
            planned = "" if expected is None else show(expected)
            off = units.off(value, expected, points=show is units.percent)
            table.add_row(label, Text(show(value), "bold"), planned, off, Text(note, "dim"))

    kind = tokens_of(summary.get("task", "generate")).removesuffix("s")
    made = cells.plural(summary["tokens"]["completion"], kind)
    took = units.duration(summary["generate_s"])
    add("tokens/s", "tokens_per_s", units.amount, f"{made} in {took}")
    outcome = Text.assemble(
        (f"{units.count(rows['ok'])} ok", "dim"),
        (
            f", {units.count(rows['failed'])} failed: see errors.jsonl" if rows["failed"] else "",
            "red",
        ),
    )
    table.add_row("rows", Text(units.count(rows["total"]), "bold"), "", "", outcome)
    add(
        "wall time",
        "wall_s",
        units.duration,
        f"loading took {units.duration(summary['load_s'])}",
    )
    if ttft["mean"] is not None:
        half, most = units.duration(ttft["p50"]), units.duration(ttft["p95"])
        note = Text(f"half within {half}, 95 % within {most}", "dim")
        table.add_row("first token", Text(units.duration(ttft["mean"]), "bold"), "", "", note)
    add(
        "busy",
        "utilization",
        units.percent,
        f"mean of {cells.plural(len(summary['stages']), 'stage')}",
    )
    add("bubble", "bubble", units.percent, "idle while another stage computes")
    add("FLOPs", "flop_utilization", units.percent, "of the devices' peak: 2 x parameters x tokens")
    add(
        "bandwidth", "bandwidth_utilization", units.percent, "of the devices' memory, weights alone"
    )
    add("GPU hours", "gpu_hours", units.amount)
    if summary.get("read_rate"):
        rate, storage = units.size(summary["read_rate"]), units.size(summary["storage_rate"])
        how = f"{rate} per second; the storage gave {storage} per second while it was read"
        add("read per token", "read_bytes_per_token", units.size, how)
    return table


def _stages(stages: Sequence[Mapping[str, Any]], wide: bool) -> RenderableType:
    table = cells.table("stage", "on", "layers", wide=wide)
    if wide:
        table.add_column("time")
    expected = [stage.get("predicted", {}).get("busy") for stage in stages]
    planned = len(stages) > 1 and any(share is not None for share in expected)
    heads = [name.replace("_", "\n").replace("transfer", "trans-\nfer") for name in bars.SHARES]
    for head in ["busy\nplan"] * planned + [*heads, "peak\nmemory"]:
        table.add_column(head, justify="right", no_wrap=True)
    places = [key for key in ("world", "replica") if len({stage[key] for stage in stages}) > 1]
    number = cells.numbers(stages)
    for stage, share in zip(stages[: cells.MOST_ROWS], expected, strict=False):
        row: list[RenderableType] = [
            ".".join([*(str(stage[key]) for key in places), number(stage)]),
            Text(f"{cells.host(stage['host'])} {stage['device']}".strip()),
            cells.layers(stage["layers"], stage["weights_bytes"]),
        ]
        if wide:
            row.append(bars.stacked(stage))
        row += [Text(units.percent(share), "dim")] * planned
        row += [Text(units.percent(stage[name]), look[2]) for name, look in bars.SHARES.items()]
        table.add_row(*row, units.size(stage["peak_memory_bytes"]))
    legend = [Padding(bars.Legend(), (1, 0, 0, 0))] if wide else []
    return Group(table, *cells.more(len(stages), "summary.json"), *legend)
