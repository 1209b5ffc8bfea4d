"""Progress of a run while it goes: a line redrawn on a terminal, plain lines now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import IO, Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from launcher.console import clean
from launcher.report.states import steps
from launcher.report.units import duration

TERMINAL_S, PLAIN_S = 0.5, 10.0


class Progress:
    """Asks ``look`` for the state of a run (state.RunState as a dict) and shows it on ``stream``."""

    def __init__(self, look: Callable[[], dict[str, Any]], stream: IO[str], quiet: bool) -> None:
        self._look = look
        self._console = Console(file=stream)
        self._quiet = quiet
        self._every = TERMINAL_S if self._console.is_terminal else PLAIN_S
        self._live = Live(console=self._console, transient=True, auto_refresh=False)
        self._next = 0.0
        self._last = ""

    def __enter__(self) -> Progress:
        if self._console.is_terminal and not self._quiet:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def update(self) -> None:
        """Show the state if it is time to; cheap otherwise."""
        if self._quiet or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._every
        self._show(progress_line(self._look()))

    def note(self, text: str) -> None:
        """Say something once, above the line."""
        if not self._quiet:
            self._console.print(clean(text), markup=False, soft_wrap=True, highlight=False)

    def _show(self, line: str) -> None:
        if self._console.is_terminal:
            self._live.update(Text(clean(line)), refresh=True)
        elif line != self._last:
            self._console.print(clean(line), markup=False, soft_wrap=True, highlight=False)
        self._last = line


def progress_line(state: dict[str, Any]) -> str:
    """Rows done, speed and time left in one line; before the first row, what the ranks are at."""
    rows = state["rows"]
    parts = [f"{rows['done']}/{rows['total']} rows" if rows["total"] else steps(state)]
    if rows["failed"]:
        parts.append(f"{rows['failed']} failed")
    if state["tokens_per_s"]:
        parts.append(f"{state['tokens_per_s']:.0f} tok/s")
    if state["eta_s"] is not None:
        parts.append(f"{duration(state['eta_s'])} left")
    phases = sorted({rank["phase"] for rank in state["ranks"]} - {"serving"})
    if phases and phases != ["running"]:
        parts.append(f"ranks {', '.join(phases)}")
    return "  ".join(parts) if state["ranks"] else f"{parts[0]}  starting the ranks"
