"""What a check finds, and how checks ask other programs."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

ASK_TIMEOUT_S = 20.0  # Slurm's clients wait minutes for a controller that is down

Status = Literal["ok", "note", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """``status``: ok | note (good to know) | warning (some runs will suffer) | problem (runs will fail)."""

    area: str
    check: str
    status: Status
    says: str
    remedy: str | None = None
    host: str | None = None


def ask(argv: Sequence[str]) -> str | None:
    """What a program prints; None if it is not here, fails, or does not answer in time."""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
