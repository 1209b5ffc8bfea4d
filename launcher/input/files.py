"""Input files: found, opened, told apart and cut into lines, as bytes. Only regular files are read."""

from __future__ import annotations

import codecs
import contextlib
import glob
import json
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from launcher.errors import LauncherError, PreflightError, UsageError
from launcher.input import dataset
from launcher.job.spec import InputSpec

MAX_LINE_BYTES = 16 << 20
COMPRESSED = {".gz", ".bz2", ".xz", ".zst", ".zip"}
TABLES = {".parquet": "parquet", ".pq": "parquet", ".arrow": "arrow", ".feather": "arrow"}


class Line(NamedTuple):
    """A line that is not blank. ``number`` counts all lines from 1; ``data`` has no line end, and is
    None for a line over MAX_LINE_BYTES."""

    number: int
    offset: int
    data: bytes | None


def find_files(spec: InputSpec) -> list[Path]:
    """The input's files in the order of the spec, those of one glob sorted. Raises UsageError."""
    entries = [spec.path] if isinstance(spec.path, str) else spec.path
    found = [path for entry in entries for path in _expand(entry)]
    seen: dict[Path, Path] = {}
    for path in found:
        real = path.resolve()
        if real in seen:
            raise UsageError(
                f"the input names the same file twice: {seen[real]} and {path}",
                where="input.path",
                fix="name every file once",
            )
        seen[real] = path
    if not found:
        raise UsageError("the input names no file", where="input.path")
    return [path.absolute() for path in found]


def _expand(entry: str) -> list[Path]:
    path = Path(entry)
    if path.exists() or not glob.has_magic(entry):
        return _saved(path)
    # As in a shell, * leaves hidden files out; Path.glob would not.
    matches = sorted(glob.glob(entry, recursive=True))  # noqa: PTH207
    if not matches:
        raise UsageError(f"no file matches {entry!r}", where="input.path", fix="mend the pattern")
    return [file for match in matches for file in _saved(Path(match))]


def _saved(path: Path) -> list[Path]:
    """The files of a dataset's folder; any other path as it is."""
    return (dataset.data_files(path) if path.is_dir() else None) or [path]


def open_input(path: Path) -> BinaryIO:
    """The file, opened to be read. Raises UsageError unless it is a regular file that can be read."""
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"cannot read the input: {error.strerror}", where=str(path)) from None
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb", buffering=1 << 20)
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        kinds = (kind for kind in (".jsonl", *TABLES, ".txt") if any(path.glob(f"*{kind}")))
        fix = f"name its files, for example {path}/*{next(kinds, '.jsonl')}"
        raise UsageError("the input is a directory", where=str(path), fix=fix)
    raise UsageError("the input is not a regular file", where=str(path), fix="copy it into a file")


def read_lines(file: BinaryIO, digest: Callable[[bytes], object]) -> Iterator[Line]:
    """The lines that are not blank; ``digest`` is given every byte of the file.

    Lines end with b"\\n" alone; a b"\\r" before it and a byte order mark at the start are left out.
    """
    offset = 0
    number = 0
    while raw := file.readline(MAX_LINE_BYTES + 1):
        digest(raw)
        number += 1
        start, length = offset, len(raw)
        if length > MAX_LINE_BYTES and raw[-1:] != b"\n":
            length += _skip_line(file, digest)
            yield Line(number, start, None)
        else:
            if number == 1 and raw.startswith(codecs.BOM_UTF8):
                start, raw = 3, raw[3:]
            data = raw.removesuffix(b"\n").removesuffix(b"\r")
            if data and not data.isspace():
                yield Line(number, start, data)
        offset += length


def _skip_line(file: BinaryIO, digest: Callable[[bytes], object]) -> int:
    skipped = 0
    while rest := file.readline(1 << 20):
        digest(rest)
        skipped += len(rest)
        if rest[-1:] == b"\n":
            break
    return skipped


def detect_format(path: Path, wanted: str) -> str:
    """``jsonl``, ``openai``, ``text``, ``parquet`` or ``arrow``: what is wanted, or by extension and first row
    for ``auto``."""
    extension = path.suffix.lower()
    if extension in COMPRESSED:
        raise UsageError("the input is compressed", where=str(path), fix="unpack it first")
    if wanted != "auto":
        return wanted
    if extension in TABLES:
        return TABLES[extension]
    return "text" if extension == ".txt" else _format_of_rows(path)


def _format_of_rows(path: Path) -> str:
    """By the first row that is a JSON object, among the first hundred."""
    with open_input(path) as file:
        for count, line in enumerate(read_lines(file, len)):
            row = _object_or_none(line.data)
            if row is not None:
                return "openai" if {"custom_id", "body"} <= row.keys() else "jsonl"
            if count == 0 and (line.data or b"").lstrip().startswith(b"["):
                fix = f"one object a line: jq -c '.[]' {path} > rows.jsonl"
                raise UsageError("the input is one JSON array", where=str(path), fix=fix)
            if count == 100:
                break
    if path.suffix.lower() in {".jsonl", ".ndjson", ".json"}:
        return "jsonl"
    raise UsageError(
        "cannot tell the format of the input",
        where=str(path),
        fix="set input.format: jsonl | openai | text | parquet | arrow",
    )


def _object_or_none(data: bytes | None) -> dict[str, object] | None:
    try:
        row = json.loads(data or b"")
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


class Readers:
    """Files kept open for reading at an offset; the least recently used is closed beyond ``limit``."""

    def __init__(self, limit: int = 128) -> None:
        self._open: OrderedDict[Path, int] = OrderedDict()
        self._limit = limit

    def read(self, path: Path, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes at ``offset``. Raises OSError."""
        descriptor = self._open.get(path)
        if descriptor is None:
            descriptor = self._open[path] = os.open(
                path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
            )
            if len(self._open) > self._limit:
                os.close(self._open.popitem(last=False)[1])
        else:
            self._open.move_to_end(path)
        return os.pread(descriptor, length, offset)

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


@contextlib.contextmanager
def told(
    what: str, where: Path, fix: str | None = None, kind: type[LauncherError] = PreflightError
) -> Iterator[None]:
    """An OSError inside becomes an error of ``kind`` that says what could not be done, and where."""
    try:
        yield
    except OSError as error:
        raise kind(f"{what}: {error.strerror}", where=str(where), fix=fix) from error
