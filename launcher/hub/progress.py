"""Progress of a download as lines of text, taken from huggingface_hub's progress bars."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import Any

SECONDS_BETWEEN = 2.0


def bars(name: str, say: Callable[[str], None]) -> type:
    """A class for ``tqdm_class`` of snapshot_download that draws nothing and tells ``say``."""
    from tqdm import tqdm

    last = float("-inf")

    class Bar(tqdm):
        """A bar that counts bytes, or files: those are not told."""

        monitor_interval = 0  # no thread that refreshes what is not drawn

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)  # of huggingface_hub's own bars
            super().__init__(*args, **{**kwargs, "file": io.StringIO(), "disable": False})

        def update(self, n: float | None = 1) -> bool | None:
            nonlocal last
            moved = super().update(n)
            if self.unit == "B" and self.total and time.monotonic() - last > SECONDS_BETWEEN:
                last = time.monotonic()
                say(f"fetching {name}: {_size(self.n)} of {_size(self.total)}")
            return moved

    return Bar


def _size(count: float) -> str:
    if count < 1e9:
        return f"{count / 1e6:.1f} MB"
    return f"{count / 1e9:.1f} GB"
