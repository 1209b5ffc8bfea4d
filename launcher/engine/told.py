"""What is told of generated tokens: their log-probabilities and the likeliest ones, as OpenAI's chat completions have it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from launcher.engine.text import Text
from launcher.model.sampling import NO_TOKEN

LEAST = -9999.0  # in place of minus infinity and of what is no number, which JSON can't hold
DIGITS = 6  # behind the point, of log-probabilities that are written


def describe(
    text: Text, tokens: Sequence[int], told: Iterable[Sequence[float]], tops: int
) -> Iterator[dict[str, Any]]:
    """An entry for each of ``tokens``. ``told`` has what a step with ``tops`` yields behind each: its log-probability,
    the likeliest tokens, as many or more than ``tops``, and theirs; a small vocabulary has fewer."""
    for number, (token, (own, *best)) in enumerate(zip(tokens, told, strict=False)):
        before = list(tokens[max(0, number - 1) : number])
        half = len(best) // 2
        likeliest = zip(best[:half][:tops], best[half:][:tops], strict=True)
        yield {
            **_entry(text.piece(before, token), own),
            "top_logprobs": [
                _entry(text.piece(before, int(t)), value) for t, value in likeliest if t != NO_TOKEN
            ],
        }


def _entry(piece: str, value: float) -> dict[str, Any]:
    """``bytes`` is None where a token is not a whole character."""
    whole = "\ufffd" not in piece
    return {
        "token": piece,
        "logprob": round(max(LEAST, value), DIGITS),
        "bytes": list(piece.encode()) if whole else None,
    }
