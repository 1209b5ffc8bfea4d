"""How many bytes of the prompts make a token, by the model's own tokenizer where that is quickly asked. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from launcher.logs import get_logger

MOST_BYTES = (
    8 << 20
)  # of a tokenizer that is loaded for this: larger ones take longer than a plan may


def bytes_per_token(model: Path, texts: Sequence[str]) -> float | None:
    """Of these texts; None where that can't be told: no such tokenizer, or a large one."""
    path = model / "tokenizer.json"
    size = sum(len(text.encode(errors="replace")) for text in texts)
    if not size or not path.is_file() or path.stat().st_size > MOST_BYTES:
        return None
    try:
        from tokenizers import Tokenizer

        tokens = sum(
            len(each.ids) for each in Tokenizer.from_file(str(path)).encode_batch([*texts])
        )
    except Exception as error:  # noqa: BLE001 - a tokenizer's own code may raise anything, and a plan can do without
        get_logger().info("tokens are estimated: %r", error)
        return None
    return size / tokens if tokens else None
