"""Reading a YAML file of a user: its size and encoding are checked before it is parsed."""

from __future__ import annotations

from pathlib import Path

from launcher.errors import Problem, SpecError, UsageError

MAX_BYTES = 1 << 20


def read_text(path: Path, most: int = MAX_BYTES) -> str:
    """The file's text, a byte order mark taken off.

    Raises UsageError if it can't be read, SpecError if it has over ``most`` bytes or is not UTF-8.
    """
    if path.exists() and not path.is_file():
        raise UsageError(
            "this is a directory or a device, not a file",
            where=str(path),
            fix="give the path of a YAML file",
        )
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise UsageError(
            f"can't read the file: {error.strerror or error}",
            where=str(path),
            fix="give the path of a YAML file; configs/ has some to start from",
        ) from None
    if len(data) > most:
        what = f"larger than {most >> 20} MiB"
        raise SpecError([Problem(str(path), what, "prompts belong to input.path")])
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        problem = Problem(f"{path}:{line}:{column}", "not UTF-8", "save the file as UTF-8")
        raise SpecError([problem]) from None
