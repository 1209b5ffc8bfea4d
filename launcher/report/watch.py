"""One screen of a run that goes: `launcher status --watch`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from launcher.report import cells, units
from launcher.report.sofar import Key, SharesSoFar, rate, stragglers
from launcher.report.states import failure_lines, head_lines, phase
from launcher.run import Run

FRAME = 11  # lines beside the table of ranks
State = Mapping[str, Any]


class Screen:
    """Context manager: ``show`` draws the state of a run over the whole terminal, which is given back at the end."""

    def __init__(self, run: Run, console: Console) -> None:
        self._shares = SharesSoFar(run)
        self._console = console
        self._live = Live(console=console, screen=True, auto_refresh=False)

    def __enter__(self) -> Screen:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, state: State) -> None:
        """Draw ``state`` (state.RunState as a dict)."""
        shares = self._shares.look(state["ranks"])
        rows = max(4, self._console.height - FRAME)
        self._live.update(screen(state, shares, rows), refresh=True)


def screen(state: State, shares: Mapping[Key, Mapping[str, float]], rows: int) -> RenderableType:
    """Progress, worlds, what the time went into so far, and at most ``rows`` ranks, those that lag first."""
    lagging = stragglers(state["ranks"])
    return Group(
        *head_lines(state),
        *_worlds(state),
        *_mean(shares),
        Text(),
        _ranks(state["ranks"], shares, lagging, rows),
        *failure_lines(state["failure"]),
        Text("^C leaves; the run goes on", "dim"),
    )


def _worlds(state: State) -> list[RenderableType]:
    """The latest attempt of each world; a single world's only where it is not the first."""
    latest = {attempt["world"]: attempt for attempt in state["attempts"]}
    if len(latest) < 2 and len(state["attempts"]) < 2:
        return []
    said = []
    for attempt in list(latest.values())[:8]:
        drains = attempt["state"] == "running" and attempt["draining"]
        said.append(
            f"{attempt['name']} " + (f"draining ({drains})" if drains else attempt["state"])
        )
    more = f", and {len(latest) - 8} more" if len(latest) > 8 else ""
    return [Text(f"worlds: {', '.join(map(cells.clean, said))}{more}")]


def _mean(shares: Mapping[Key, Mapping[str, float]]) -> list[RenderableType]:
    if not shares:
        return []
    parts = [
        f"{units.percent(statistics.fmean(each[name] for each in shares.values()))} {says}"
        for name, says in (("busy", "busy"), ("bubble", "bubble"), ("transfer", "transfer"))
    ]
    return [Text(f"so far: {', '.join(parts)}")]


def _ranks(
    ranks: Sequence[Mapping[str, Any]],
    shares: Mapping[Key, Mapping[str, float]],
    lagging: Mapping[Key, str],
    rows: int,
) -> RenderableType:
    worlds = len({rank["attempt"] for rank in ranks}) > 1
    columns = ["attempt"] * worlds + ["rank", ">replica", "host", "phase", ">rows", ">tok/s"]
    table = cells.table(*columns, ">busy", ">bubble", ">idle", "")
    order = sorted(ranks, key=lambda rank: (rank["attempt"], rank["rank"]) not in lagging)
    shown = order if len(order) <= rows else order[: rows - 1]
    for rank in shown:
        key = (rank["attempt"], rank["rank"])
        spent = shares.get(key, {})
        idle = spent["host_gap"] + spent["no_work"] if spent else None
        table.add_row(
            *[rank["attempt"]] * worlds,
            str(rank["rank"]),
            str(rank["replica"]),
            Text(cells.host(rank["host"])),
            phase(rank),
            units.count(rank["rows_done"]),
            units.amount(rate(rank, "completion_tokens") or None),
            units.percent(spent.get("busy")),
            units.percent(spent.get("bubble")),
            units.percent(idle),
            Text(lagging.get(key, ""), "yellow"),
        )
    left = len(order) - len(shown)
    return Group(table, *[Text(f"... and {left} more", "dim")] * (left > 0))
