"""What the doctor found, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from launcher.report import cells

MARKS = {
    "ok": ("ok", "green"),
    "note": ("note", "cyan"),
    "warning": ("warning", "yellow"),
    "problem": ("problem", "bold red"),
}


def findings_table(findings: Sequence[Mapping[str, Any]]) -> RenderableType:
    """One line per finding by area, remedies below; of other nodes than the first, what is not ok."""
    first = findings[0]["host"] if findings else None
    shown = [row for row in findings if row["status"] != "ok" or row["host"] in (None, first)]
    parts: list[RenderableType] = []
    for (host, area), rows in groupby(shown, key=lambda row: (row["host"], row["area"])):
        title = area if host is None else f"{area} on {cells.host(host)}"
        parts += [Text(title, "bold"), Padding(_lines(list(rows)), (0, 0, 1, 2))]
    return Group(*parts, _verdict(findings))


def _lines(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    table.add_column(overflow="fold")
    for row in rows:
        says = Text(cells.clean(row["says"]))
        if row["remedy"] and row["status"] != "ok":
            says.append(f"\n-> {cells.clean(row['remedy'])}", "dim")
        table.add_row(Text(*MARKS[row["status"]]), cells.clean(row["check"]), says)
    return table


def _verdict(findings: Sequence[Mapping[str, Any]]) -> Text:
    bad = [
        cells.plural(count, status)
        for status in ("problem", "warning")
        if (count := sum(row["status"] == status for row in findings))
    ]
    style = "bold red" if any(row["status"] == "problem" for row in findings) else "yellow"
    return Text(", ".join(bad) or "nothing stands in the way", style if bad else "green")
