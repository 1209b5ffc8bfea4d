"""A row of task `score`: what is given, and the continuations of it whose log-probabilities are asked for."""

from __future__ import annotations

from typing import Any

from launcher.input.codes import RowError, quote

GIVEN = ("prefix", "prompt", "messages")  # one of them
ASKED = ("continuations", "options")  # one of them
SLOT_BYTES = 512  # of continuations for which a slot has room beside each other; longer ones are one at a time


def parse_given(row: dict[str, Any]) -> tuple[str | None, Any]:
    """The prefix, which may be empty, or else the messages as they are in the row. Raises RowError."""
    key = _only(row, GIVEN, "no_prompt", "two_prompts")
    given = row[key]
    if key == "messages":
        return None, given
    if not isinstance(given, str):
        raise RowError("bad_prompt", f"{key} must be text, not {quote(given)}")
    return given, None


def parse_continuations(row: dict[str, Any]) -> tuple[str, ...]:
    """Raises RowError."""
    key = _only(row, ASKED, "no_continuations", "bad_continuations")
    asked = row[key]
    if asked == []:
        raise RowError("no_continuations", f"{key} is empty")
    if not isinstance(asked, list) or not all(isinstance(each, str) for each in asked):
        raise RowError("bad_continuations", f"{key} must be a list of texts, not {quote(asked)}")
    if "" in asked:
        raise RowError("bad_continuations", f"{key}[{asked.index('')}] is empty")
    return tuple(asked)


def room_bytes(continuations: tuple[str, ...]) -> int:
    """Bytes, and so tokens at most, that a slot needs behind the prefix."""
    sizes = [byte_length(each) for each in continuations]
    return max(*sizes, min(sum(sizes), SLOT_BYTES))


def byte_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _only(row: dict[str, Any], keys: tuple[str, ...], none: str, several: str) -> str:
    """The key of ``keys`` that the row has; ``none`` and ``several`` are the codes of other rows' errors."""
    found = [key for key in keys if row.get(key) is not None]
    if not found:
        raise RowError(none, f"a row to score has one of {', '.join(keys)}")
    if len(found) > 1:
        raise RowError(several, f"a row has {' or '.join(found)}, not both")
    return found[0]
