"""The ways to run a job beside each other, and why the best of them is: for `launcher plan` in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from launcher.report import cells, units

SHOWN = 6


def choice_table(candidates: Sequence[Mapping[str, Any]]) -> list[RenderableType]:
    """The best few and the plan's own, each with what it loses by; nothing where there is no choice."""
    if len(candidates) < 2:
        return []
    shown = [each for n, each in enumerate(candidates) if n < SHOWN or each["chosen"]]
    merit = _merit(candidates)
    return [Text(), cells.Adaptive(lambda wide: _table(shown, merit, wide))]


def _merit(candidates: Sequence[Mapping[str, Any]]) -> str:
    """Why the first of them, which loses by nothing, is the first."""
    best, *others = candidates
    if not best["fits"]:
        return "the nearest to fitting"
    if not best["tokens_per_s"]:
        return "its speed is not predicted"
    rates = (each["tokens_per_s"] or 0.0 for each in others if each["fits"])
    slower = best["tokens_per_s"] < max(rates, default=0.0)
    return "about as fast as any, in the smallest replicas" if slower else "the fastest"


def _table(shown: Sequence[Mapping[str, Any]], merit: str, wide: bool) -> RenderableType:
    table = cells.table("ways to run it", ">batch", ">tok/s", ">busy", "why not", wide=wide)
    table.columns[-1].no_wrap = False
    for each in shown:
        style = "bold" if each["chosen"] else "" if each["fits"] else "dim"
        name = ("* " if each["chosen"] else "  ") + split(each)
        table.add_row(
            Text(name, style),
            f"{each['groups']} x {each['slots']}",
            Text(units.amount(each["tokens_per_s"]) if each["fits"] else "-", style),
            units.percent(each["utilization"]) if each["fits"] else "-",
            Text(cells.clean(each["reason"]) or merit, "dim"),
        )
    return Group(table, Text("* the plan above; all of them are in --json", "dim"))


def split(candidate: Mapping[str, Any]) -> str:
    """``2 x pipeline 4 of 2``: replicas, strategy, stages and the shards of each; shards may be threads of one rank."""
    stages, shards, replicas = (candidate[key] for key in ("stages", "tensor", "replicas"))
    parts = [f"{replicas} x " if replicas > 1 else "", candidate["strategy"]]
    if candidate["strategy"] == "tensor":
        parts.append(f" {shards}")
        parts.append(", threads" if candidate.get("ranks") == replicas < replicas * shards else "")
    elif stages > 1 or shards > 1:
        parts.append(f" {stages}" + (f" of {shards}" if shards > 1 else ""))
    return "".join(parts)
