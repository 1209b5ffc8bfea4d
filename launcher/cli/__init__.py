"""The command line: one short function per command. Only this package and console.py print, only this one exits."""

from __future__ import annotations

import json
import signal
import sys

# In the order in which --help lists the commands.
from launcher.cli import init, start, runs, setup, bench  # isort: skip
from launcher.cli.app import app
from launcher.console import clean
from launcher.errors import LauncherError

__all__ = ["app", "bench", "init", "main", "runs", "setup", "start"]


def main() -> None:
    """Entry point: errors become text on stderr (JSON on stdout with --json) and the exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)  # as ^C: clean up, drain
    try:
        app()
    except LauncherError as error:
        if "--json" in sys.argv:
            print(json.dumps(error.as_dict()))
        else:
            print(clean(f"launcher: {error}"), file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:  # a disk, a path or a permission that no command foresaw
        print(clean(f"launcher: {error}\n  likely cause: the system refused it"), file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt
