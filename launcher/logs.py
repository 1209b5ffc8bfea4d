"""Logging shared by the processes: one logger, one line format, times in UTC."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path


def get_logger() -> logging.Logger:
    """The program's logger; silent until ``to``."""
    return logging.getLogger("launcher")


def to(who: str, path: Path | None = None) -> None:
    """Write log lines to ``path`` (None: stderr), each with the time (UTC) and ``who``."""
    handler = logging.StreamHandler(sys.stderr) if path is None else logging.FileHandler(path)
    formatter = logging.Formatter(
        f"%(asctime)s {who} %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ"
    )
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logger = get_logger()
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
