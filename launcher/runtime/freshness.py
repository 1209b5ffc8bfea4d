"""Freshness: how long others have given no sign of life."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

AWAKE_S = 2.0  # a round of a watch that takes longer was not this process's own doing


@dataclass
class Freshness:
    """How long a value that another process keeps changing has stood still, by this process's own clock:
    clocks of two hosts may be an hour apart."""

    seen: dict[Any, tuple[Any, float]] = field(default_factory=dict)

    def age(self, key: Any, value: Any) -> float:
        before = self.seen.get(key)
        if before is None or before[0] != value:
            self.seen[key] = (value, time.monotonic())
            return 0.0
        return time.monotonic() - before[1]

    def forgive(self, seconds: float) -> None:
        """Leave a time out in which this process itself stood still."""
        if seconds:
            self.seen = {key: (value, at + seconds) for key, (value, at) in self.seen.items()}
