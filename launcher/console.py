"""What a command prints: results on stdout, all else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any


def say(as_json: bool) -> Callable[[str], None]:
    """Where progress before a run goes: stderr, so that stdout stays clean."""
    return lambda text: None if as_json else print(text, file=sys.stderr, flush=True)


def out(value: Any, as_json: bool, shown: Any = None) -> None:
    """The one place that writes results: ``value`` as JSON, or ``shown`` (text or a rich renderable)."""
    if as_json:
        if value is not None:
            print(json.dumps(value, indent=1))
    elif isinstance(shown, str):
        print(shown)
    elif shown is not None:
        from rich.console import Console

        Console().print(shown)
