"""Parquet and Arrow files as rows of JSON, a batch at a time, so that a million rows take no more memory than a thousand."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from launcher.errors import PreflightError, UsageError
from launcher.input.files import open_input
from launcher.input.rows import PROMPT_KEYS, ROW_KEYS

FORMATS = ("parquet", "arrow")
BATCH_ROWS, BATCH_BYTES = 1024, 8 << 20
NOT_UTF8 = b"\xff\n"  # the row that says so of itself when it is parsed


def require_pyarrow(where: str) -> None:
    """Raises PreflightError where pyarrow is not installed; ``where`` is what asks for it."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise PreflightError(
            f"Parquet and Arrow files need pyarrow, which is not installed: {error}",
            where=where,
            fix="pip install pyarrow (or install launcher with its extra `parquet`)",
        ) from None


def rows(
    path: Path, form: str, columns: Mapping[str, str], task: str = "generate"
) -> Iterator[bytes]:
    """Every row of the file as a line of format jsonl. ``columns``: row key to the column that holds it.

    Only the columns that a row of ``task`` may have are read. Nulls are left out, also within messages. Raises UsageError.
    """
    open_input(path).close()  # told apart from a folder or a pipe
    require_pyarrow(str(path))
    with _readable(path, form):
        schema = _schema(path, form)
        wanted = _wanted(path, schema, columns, task)
        names = {column: key for key, column in wanted.items()}
        for batch in _batches(path, form, list(names)):
            renamed = batch.rename_columns([names[name] for name in batch.schema.names])
            yield from _lines(renamed)


def count_rows(path: Path, form: str) -> int:
    """The number of rows, from what the file says of itself. Raises UsageError."""
    open_input(path).close()
    require_pyarrow(str(path))
    import pyarrow
    import pyarrow.parquet

    with _readable(path, form):
        if form == "parquet":
            return int(pyarrow.parquet.read_metadata(path).num_rows)
        with pyarrow.memory_map(str(path)) as source:  # mapped: only the batches' heads are read
            return sum(batch.num_rows for batch in _record_batches(source, path, None))


def _schema(path: Path, form: str) -> Any:
    import pyarrow
    import pyarrow.parquet

    if form == "parquet":
        return pyarrow.parquet.read_schema(path)
    with pyarrow.OSFile(str(path)) as source:
        return _reader(source, path, None).schema


def _wanted(path: Path, schema: Any, columns: Mapping[str, str], task: str) -> dict[str, str]:
    """Row key to column, for the keys that the file has. Raises UsageError for what can't be a row."""
    named = {key: key for key in ROW_KEYS[task] if key in schema.names} | dict(columns)
    listed = ", ".join(schema.names[:20]) + (" ..." if len(schema.names) > 20 else "")
    absent = [column for column in columns.values() if column not in schema.names]
    if absent:
        raise UsageError(
            f"there is no column {absent[0]!r}; the columns are: {listed}",
            where=str(path),
            fix="correct input.columns",
        )
    prompts = PROMPT_KEYS[task]
    if not any(key in named for key in prompts):
        raise UsageError(
            f"no column is called {' or '.join(prompts)}; the columns are: {listed}",
            where=str(path),
            fix="name the one that holds the prompts: input.columns: {prompt: ...}",
        )
    for column in named.values():
        if schema.names.count(column) > 1:
            raise UsageError(f"two columns are called {column!r}", where=str(path))
        kind = schema.field(column).type
        if not _is_json(kind):
            raise UsageError(
                f"column {column!r} holds {kind}, which a row can't hold",
                where=str(path),
                fix="convert it to text or numbers",
            )
    return named


def _is_json(kind: Any) -> bool:
    from pyarrow import types

    nested = (types.is_dictionary, types.is_list, types.is_large_list, types.is_fixed_size_list)
    if any(test(kind) for test in nested):
        return _is_json(kind.value_type)
    if types.is_struct(kind):
        return all(_is_json(field.type) for field in kind)
    texts = (types.is_string, types.is_large_string, types.is_string_view)
    numbers = (types.is_integer, types.is_floating, types.is_boolean, types.is_null)
    return any(test(kind) for test in (*texts, *numbers))


def _batches(path: Path, form: str, columns: list[str]) -> Iterator[Any]:
    """Record batches of these columns, each of about BATCH_BYTES at most."""
    import pyarrow
    import pyarrow.parquet

    if form == "parquet":
        # With a buffer, a row group is read as it is decoded instead of at once: it may be gigabytes.
        file = pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20)
        with contextlib.closing(file):
            size = sum(
                file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups)
            )
            count = _batch_rows(size, file.metadata.num_rows)
            yield from file.iter_batches(batch_size=count, columns=columns, use_threads=False)
        return
    with pyarrow.OSFile(str(path)) as source:
        for batch in _record_batches(source, path, columns):
            count = _batch_rows(batch.nbytes, batch.num_rows)
            yield from (batch.slice(at, count) for at in range(0, batch.num_rows, count))


def _batch_rows(size: int, count: int) -> int:
    return max(1, min(BATCH_ROWS, BATCH_BYTES * count // max(1, size)))


def _record_batches(source: Any, path: Path, columns: list[str] | None) -> Iterator[Any]:
    reader = _reader(source, path, columns)
    if hasattr(reader, "num_record_batches"):
        yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
    else:
        yield from reader


def _reader(source: Any, path: Path, columns: list[str] | None) -> Any:
    """Of the file form (Feather) or of the stream form, in which datasets are saved."""
    from pyarrow import ipc

    with path.open("rb") as file:
        opener = ipc.open_file if file.read(6) == b"ARROW1" else ipc.open_stream
    if columns is None:
        return opener(source)
    fields = opener(source).schema.names
    source.seek(0)
    picked = ipc.IpcReadOptions(included_fields=[i for i, f in enumerate(fields) if f in columns])
    return opener(source, options=picked)


def _lines(batch: Any) -> Iterator[bytes]:
    try:
        found = batch.to_pylist()
    except UnicodeDecodeError:  # files do not promise that their text is text
        if batch.num_rows == 1:
            yield NOT_UTF8
            return
        for row in range(batch.num_rows):
            yield from _lines(batch.slice(row, 1))
        return
    for row in found:
        yield json.dumps(_without_nulls(row), ensure_ascii=False).encode() + b"\n"


def _without_nulls(value: Any) -> Any:
    """Every struct of a column has all its fields; the null ones are those that the row did not have."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


@contextlib.contextmanager
def _readable(path: Path, form: str) -> Iterator[None]:
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError) as error:
        text = str(error).splitlines()[0]
        raise UsageError(
            f"the file can't be read as {form}: {text}",
            where=str(path),
            fix="write it again, or set input.format to what it is",
        ) from None
