"""Small bars for tables: a meter, and shares stacked. Told apart without colours and without Unicode, too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.text import Text

# share: glyph, glyph where there is only ASCII, style; in the order in which they are stacked
SHARES = {
    "busy": ("█", "#", "green"),
    "bubble": ("░", ":", "red"),
    "transfer": ("▓", "=", "cyan"),
    "weights": ("▒", "+", "blue"),
    "host_gap": ("·", ".", "yellow"),
    "no_work": (" ", " ", ""),
}


@dataclass(frozen=True)
class Run:
    """One glyph repeated over a part of a bar."""

    part: float
    look: tuple[str, str, str]


class Bar:
    """Runs of glyphs in proportion to their parts, as wide as there is room for between ``least`` and ``most``."""

    def __init__(self, runs: list[Run], least: int = 8, most: int = 24) -> None:
        self._runs, self._least, self._most = runs, least, most

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        bar = Text(no_wrap=True, end="")
        cells = _apportion([run.part for run in self._runs], min(self._most, options.max_width))
        for count, run in zip(cells, self._runs, strict=True):
            glyph, plain, style = run.look
            bar.append((plain if options.ascii_only else glyph) * count, style)
        yield bar

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(self._least, self._most).with_maximum(options.max_width)


def stacked(shares: Mapping[str, float | None]) -> RenderableType:
    """The six shares of a stage beside each other; blank where they are not known."""
    if any(shares[name] is None for name in SHARES):
        return Text()
    return Bar([Run(shares[name] or 0.0, look) for name, look in SHARES.items()])


def meter(share: float, full_is_good: bool = False) -> Bar:
    """How full something is; where full is not good, yellow when nearly so and red when it overflows."""
    full = max(0.0, min(1.0, share))
    style = "green" if full_is_good or share <= 0.95 else "yellow" if share <= 1 else "red"
    return Bar([Run(full, ("█", "#", style)), Run(1 - full, ("░", ".", "dim"))], most=20)


class Legend:
    """What the glyphs of ``stacked`` mean, in one line."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        line = Text()
        for name, (glyph, plain, style) in SHARES.items():
            line.append(plain if options.ascii_only else glyph, style)
            line.append(f" {name.replace('_', ' ')}   ", "dim")
        yield line


def _apportion(parts: list[float], width: int) -> list[int]:
    """Whole cells in proportion to ``parts``; the largest remainders get those that are left over."""
    total = sum(parts) or 1.0
    exact = [part / total * width for part in parts]
    cells = [int(each) for each in exact]
    order = sorted(range(len(parts)), key=lambda i: cells[i] - exact[i])
    for i in order[: width - sum(cells)]:
        cells[i] += 1
    return cells
