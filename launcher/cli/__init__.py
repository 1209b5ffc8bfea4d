"""The command line: one short function per command. Only this package and console.py print, only this one exits."""

from __future__ import annotations

import json
import signal
import sys
from typing import Any, NoReturn

import typer

# In the order in which --help lists the commands.
from launcher.cli import init, start, runs, setup, bench  # isort: skip
from launcher.cli.app import app
from launcher.console import clean
from launcher.errors import Interrupted, LauncherError, UsageError

__all__ = ["app", "bench", "init", "main", "runs", "setup", "start"]

# The class of all that typer finds wrong with a command line; it exports no name for it.
_WrongLine: Any = typer.BadParameter.__base__


def main() -> None:
    """Entry point: errors become text on stderr (JSON on stdout with --json) and the exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)  # as ^C: clean up, drain
    code = None
    try:
        code = app(standalone_mode=False)
    except _WrongLine as error:
        _end_with_usage(error)
    except LauncherError as error:
        _end_with(error)
    except OSError as error:  # a disk, a path or a permission that no command foresaw
        _end_with(LauncherError.of_system(error))
    except (KeyboardInterrupt, typer.Abort) as error:
        if isinstance(error.__context__, EOFError):  # ^D at a question
            print(file=sys.stderr)  # which stands on the line
            _end_with(UsageError("no answer was given", fix="an option for it: --help lists them"))
        code = Interrupted.exit_code
    if code == Interrupted.exit_code:  # typer makes that of ^C
        _end_with(Interrupted("interrupted"))
    sys.exit(code)


def _end_with_usage(error: Any) -> NoReturn:
    """``error`` is typer's, which shows how the command is called."""
    if "--json" in sys.argv:
        path = error.ctx.command_path if error.ctx else "launcher"
        _end_with(UsageError(error.format_message(), where=path, fix=f"{path} --help"))
    error.show()
    sys.exit(error.exit_code)


def _end_with(error: LauncherError) -> NoReturn:
    if "--json" in sys.argv:
        print(json.dumps(error.as_dict()))
    else:
        print(clean(f"launcher: {error}"), file=sys.stderr)
    sys.exit(error.exit_code)


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt
