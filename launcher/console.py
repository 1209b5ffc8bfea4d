"""What a command prints: results on stdout, all else on stderr. Nothing that it was given steers the terminal."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Callable
from typing import Any


def clean(text: object) -> str:
    """Text from a file or a host as it may go to a terminal: line breaks and tabs stay, other controls do not."""
    return "".join(c if _harmless(c) else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def _harmless(c: str) -> bool:
    return c.isprintable() or c in "\n\t" or unicodedata.category(c) == "Zs"


def say(as_json: bool) -> Callable[[str], None]:
    """Where progress before a run goes: stderr, so that stdout stays clean."""
    return lambda text: None if as_json else print(clean(text), file=sys.stderr, flush=True)


def out(value: Any, as_json: bool, shown: Any = None) -> None:
    """The one place that writes results: ``value`` as JSON, or ``shown`` (text or a rich renderable)."""
    if as_json:
        if value is not None:
            print(json.dumps(value, indent=1))
    elif isinstance(shown, str):
        print(clean(shown))
    elif shown is not None:
        from rich.console import Console

        Console().print(shown)
