"""What `launcher bench` shows in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from launcher.plan.measured import Line, MachineProfile
from launcher.report import cells, units

MOST_LOADS = 3


def profile_table(profile: MachineProfile) -> RenderableType:
    """A machine's own figures: each world of ranks that was measured, and what lies between ranks."""
    table = cells.table("device", ">ranks", ">threads", "dtype", ">FLOP/s", ">of 1 row", ">memory")
    for speed in profile.speeds:
        for dtype, costs in speed.costs.items():
            table.add_row(
                speed.device,
                str(speed.ranks),
                str(speed.threads),
                dtype,
                f"{units.short(max(costs.matmul.values()))}",
                f"{units.short(costs.matmul[min(costs.matmul)])}",
                f"{units.size(speed.memory)}/s",
            )
    return Group(
        Text.assemble((cells.clean(profile.kind), "bold"), f", {cells.clean(profile.software)}"),
        Text(),
        table,
        Text(),
        Text(f"link ({profile.backend}): {_line(profile.link)}"),
        Text(f"sum over ranks: {_line(profile.all_reduce)}"),
        Text(f"disk: {units.size(profile.disk)}/s, from memory {units.size(profile.cached)}/s"),
    )


def attention_table(found: Mapping[str, Any]) -> RenderableType:
    """Tokens per second of each attention, with and without KV cache, and how much the fastest gains."""
    table = cells.table(
        *("attention", ">prompt", ">first token", ">tok/s", ">without cache", ">cache gains")
    )
    for row in found["results"]:
        rates = row["tokens_per_s"]
        table.add_row(
            row["attention"],
            units.count(row["length"]),
            f"{1000 * row['prefill_s']:.1f} ms",
            units.amount(rates["cache"]),
            units.amount(rates["no_cache"]),
            f"{rates['cache'] / rates['no_cache']:.1f} x",
        )
    head = f"{cells.clean(found['model'])} in {found['dtype']} on {cells.clean(found['device'])}"
    left = [Text(f"{kind}: {why}", "dim") for kind, why in found["unavailable"].items()]
    new = cells.plural(found["new_tokens"], "new token")
    return Group(Text(f"{head}, one sequence, {new}"), Text(), table, Text(), *left)


def scale_table(study: Mapping[str, Any]) -> RenderableType:
    """Fleets of several sizes: how long they take and why, and what they ask most of the cluster."""
    course = cells.table(
        *("worlds", ">GPUs", ">takes", ">undisturbed", ">busy", ">failed", ">lost", ">GPU h"),
        wide=False,
    )
    load = cells.table("worlds", "asks most for", ">per second", ">of capacity")
    for fleet in study["fleets"]:
        course.add_row(
            units.count(fleet["worlds"]),
            units.count(fleet["gpus"]),
            units.duration(fleet["seconds"]),
            units.duration(fleet["undisturbed_s"]),
            units.percent(fleet["busy"]),
            units.count(fleet["failures"]),
            units.amount(fleet["lost_rows"]),
            units.amount(fleet["gpu_hours"]),
        )
        for most in fleet["loads"][:MOST_LOADS]:
            style = "bold red" if most["share"] > 1 else ""
            share = Text(units.percent(most["share"]), style)
            per_s = units.short(most["per_s"])
            load.add_row(units.count(fleet["worlds"]), most["what"], per_s, share)
    told = [Text(f"assumed: {cells.clean(line)}", "dim") for line in study["assumptions"]]
    left = [
        Text(
            f"! {units.count(fleet['left_rows'])} rows of {fleet['worlds']} worlds wait for launcher resume",
            "yellow",
        )
        for fleet in study["fleets"]
        if fleet["left_rows"]
    ]
    return Group(course, *left, Text(), load, Text(), *told)


def _line(line: Line) -> str:
    return f"{units.size(line.bytes_per_s)}/s, {line.latency_s * 1e6:.0f} us per message"
