"""What `launcher plan --check` shows in the terminal: a run's figures, predicted, measured, and how far off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from launcher.report import cells
from launcher.report.compare import SHOW, of_run, of_stages, off

Pairs = Sequence[Mapping[str, Any]]


def check_table(name: str, pairs: Pairs) -> RenderableType:
    """All pairs: those of the run, those of each device, and why some have no difference."""
    return Group(
        Text(cells.clean(name), "bold"),
        Text(),
        _table("the run", of_run(pairs)),
        Text(),
        *_of_devices(of_stages(pairs)),
        *_missing(pairs),
    )


def _table(title: str, pairs: Pairs) -> RenderableType:
    table = cells.table(title, ">predicted", ">measured", ">off")
    for pair in pairs:
        if pair["predicted"] is not None or pair["measured"] is not None:
            show = SHOW[pair["unit"]]
            sides = (show(pair[side]) for side in ("predicted", "measured"))
            table.add_row(pair["label"], *sides, off(pair) or "-")
    return table


def _of_devices(pairs: Pairs) -> list[RenderableType]:
    """A table for each, called as in the summary: the world and the replica come first where there are several."""
    devices: dict[str, list[Mapping[str, Any]]] = {}
    for pair in pairs:
        devices.setdefault(str(pair["place"]), []).append(pair)
    places = [each[0]["place"] for each in devices.values()]
    number = cells.numbers(places)
    several = [key for key in ("world", "replica") if len({place.get(key) for place in places}) > 1]
    found: list[RenderableType] = []
    for each in list(devices.values())[: cells.MOST_ROWS]:
        place = each[0]["place"]
        name = ".".join([*(str(place[key]) for key in several), number(place)])
        title = f"stage {name}, rank {place['rank']}, {place['device']}"
        found += [_table(title, each), Text()]
    return [*found, *cells.more(len(devices), "summary.json")]


def _missing(pairs: Pairs) -> list[RenderableType]:
    """The figures that were not compared, by reason."""
    reasons: dict[str, list[str]] = {}
    for pair in pairs:
        if pair["missing"]:
            reasons.setdefault(pair["missing"], []).append(pair["label"])
    return [
        Text(f"not compared: {', '.join(dict.fromkeys(labels))}: {cells.clean(why)}", "dim")
        for why, labels in reasons.items()
    ]
