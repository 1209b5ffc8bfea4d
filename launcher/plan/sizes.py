"""Sizes in bytes: as a person writes them, and as a person reads them."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

GIB = 2**30
_SIZE = re.compile(r"(\d+\.?\d*|\.\d+) ?([KMGT]i?)?B?", re.IGNORECASE)


def read_size(value: Any) -> Any:
    """``70GiB``, ``70GB`` (powers of ten), ``512MiB`` or a number of bytes, as bytes."""
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if not match:
        raise ValueError("should be a size such as 70GiB or a number of bytes")
    unit = (match[2] or "").upper()
    base = 1024 if unit.endswith("I") else 1000
    return int(float(match[1]) * base ** (" KMGT".index(unit[0]) if unit else 0))


Bytes = Annotated[int, BeforeValidator(read_size), Field(ge=0, le=2**60)]


def gib(size: float) -> str:
    """``128.5 GiB``; MiB below one."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.0f} MiB"
