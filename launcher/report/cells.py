"""What the tables of the terminal are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from launcher.console import clean
from launcher.report import units

__all__ = [
    "Adaptive",
    "beside",
    "clean",
    "host",
    "layers",
    "more",
    "numbers",
    "plural",
    "split",
    "table",
]

WIDE = 96  # from this many columns on there is room for bars
MAY_WRAP = ("", "run", "on", "host", "job", "device", "outcome", "phase")
MOST_ROWS = 32  # of a table of devices, stages or ranks


class Adaptive:
    """Built when it is shown: ``build(True)`` where there is room for bars, else ``build(False)``."""

    def __init__(self, build: Callable[[bool], RenderableType]) -> None:
        self._build = build

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._build(options.max_width >= WIDE)


def table(*columns: str, wide: bool = True) -> Table:
    """A light table; a column whose name begins with ">" holds figures. Names of hosts and runs may wrap,
    figures may not."""
    made = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1 if wide else 0, 0, 0),
        header_style="dim",
        show_edge=False,
    )
    for name in columns:
        right = name.startswith(">")
        made.add_column(
            name.lstrip(">"),
            justify="right" if right else "left",
            no_wrap=name not in MAY_WRAP,
            overflow="fold",
        )
    return made


def beside(*parts: RenderableType) -> RenderableType:
    """``parts`` on one line."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_row(*parts)
    return grid


def more(total: int, where: str) -> Iterable[RenderableType]:
    """A line that says how many rows a table of ``total`` left out."""
    return (
        [Text(f"... and {total - MOST_ROWS} more in {where}", "dim")] if total > MOST_ROWS else []
    )


def host(name: str | None) -> str:
    """A host's own name, without its domain."""
    first = clean(name or "").partition(".")[0]
    return clean(name) if first.isdigit() else first


def plural(number: int, noun: str) -> str:
    return f"{units.count(number)} {noun}" + ("" if number == 1 else "s")


def layers(span: Sequence[int] | None, weights_bytes: float | None) -> str:
    """``0-19``; a device may hold weights and no layer, such as the embedding alone."""
    if span is not None:
        return f"{span[0]}-{span[1]}"
    return "empty" if weights_bytes == 0 else "none"


def numbers(stages: Iterable[Mapping[str, Any]]) -> Callable[[Mapping[str, Any]], str]:
    """How to call one of ``stages``: by its number, and where some have several shards by that of its shard, too."""
    sharded = any(stage.get("shard") for stage in stages)

    def number(stage: Mapping[str, Any]) -> str:
        shard = stage.get("shard") if sharded else None
        return f"{stage['stage']}" if shard is None else f"{stage['stage']}.{shard}"

    return number


def split(strategy: str, schedule: str | None) -> str:
    return f"{strategy} ({schedule})" if schedule else strategy
