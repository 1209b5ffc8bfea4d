"""Prompts: what the input asks of a plan, and its rows as an index that any rank can read from.

One bad row is one Failure, never the end of a run.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path

from launcher.errors import UsageError
from launcher.input import columnar
from launcher.input.files import Line, detect_format, find_files, open_input, read_lines, told
from launcher.input.index import InputIndex
from launcher.input.indexer import Indexer, Tally
from launcher.input.rows import ROW_KEYS
from launcher.job.spec import JobSpec
from launcher.records import Demand

__all__ = ["InputIndex", "build_index", "chunk_rows", "scan"]

MAX_CHUNK_ROWS = 256
MAX_CHUNKS = 8192  # a claim is a file: no more of them than a directory lists quickly


def build_index(spec: JobSpec, folder: Path, writers: int) -> Demand:
    """Index all rows of the input into ``folder``, to be shared by ``writers`` replicas.

    Raises UsageError for an input that can't be one, PreflightError if it changes meanwhile or the
    index can't be written.
    """
    files = _files(spec)
    with (
        told("cannot index the input", folder),
        Indexer(folder, spec.generation, spec.task) as indexer,
    ):
        for path, form in files:
            if form in columnar.FORMATS:
                indexer.add_table(path, form, spec.input.columns)
            else:
                indexer.add_file(path, form)
        rows = indexer.tally.rows
        if not rows:
            names = ", ".join(str(path) for path, _ in files)
            raise UsageError("the input holds no rows", where=names)
        indexer.fail_duplicates()
        indexer.publish(spec, chunk_rows(rows, writers))
    return indexer.tally.demand()


def chunk_rows(rows: int, writers: int) -> int:
    """Rows of a chunk: so few that every writer gets 16 chunks, so many that there are at most MAX_CHUNKS."""
    wanted = max(1, min(MAX_CHUNK_ROWS, rows // (writers * 16)))
    return max(wanted, -(-rows // MAX_CHUNKS))


def scan(spec: JobSpec, limit_bytes: int) -> Demand:
    """A look at the first ``limit_bytes`` of the input; exact if that is all of it.

    Beyond that, the number of rows is estimated from the files' sizes; tables know theirs. Raises UsageError.
    """
    files = _files(spec)
    lines = [(path, form) for path, form in files if form not in columnar.FORMATS]
    tables = [(path, form) for path, form in files if form in columnar.FORMATS]
    tally = Tally(spec.generation, spec.task)
    read = _scan_lines(lines, tally, limit_bytes)
    total = sum(path.stat().st_size for path, _ in lines)
    rows = max(tally.rows, round(tally.rows * total / read)) if read else 0
    rows += sum(columnar.count_rows(path, form) for path, form in tables)
    _scan_tables(tables, spec, tally, limit_bytes - read)
    if tally.rows >= rows and read >= total:
        return tally.demand()
    return replace(tally.demand(), rows=rows, max_new_tokens=tally.max_new_tokens, exact=False)


def _scan_lines(files: list[tuple[Path, str]], tally: Tally, limit: int) -> int:
    """Bytes that were read."""
    read = 0
    for path, form in files:
        with open_input(path) as file:
            for line in read_lines(file, len):
                tally.add(line, form)
                if read + line.offset >= limit:
                    break
            read += file.tell()
        if read >= limit:
            break
    return read


def _scan_tables(files: list[tuple[Path, str]], spec: JobSpec, tally: Tally, limit: int) -> None:
    for path, form in files:
        for number, row in zip(count(1), columnar.rows(path, form, spec.input.columns, spec.task)):
            tally.add(Line(number, 0, row.removesuffix(b"\n")), "jsonl")
            limit -= len(row)
            if limit <= 0:
                return


def _files(spec: JobSpec) -> list[tuple[Path, str]]:
    """The input's files with their formats. Raises UsageError, and PreflightError where pyarrow is missing."""
    if spec.output.format == "parquet":
        columnar.require_pyarrow("output.format: parquet")
    keys = ROW_KEYS[spec.task]
    unknown = [key for key in spec.input.columns if key not in keys]
    if unknown:
        known = ", ".join(keys)
        raise UsageError(f"input.columns: a row has no {unknown[0]!r}", fix=f"it may have: {known}")
    files = [(path, detect_format(path, spec.input.format)) for path in find_files(spec.input)]
    if spec.task == "score":
        _check_scored(spec, files)
    lines = [path for path, form in files if form not in columnar.FORMATS]
    if spec.input.columns and lines:
        raise UsageError(
            "input.columns is for Parquet and Arrow files",
            where=str(lines[0]),
            fix="rename the keys of the rows instead",
        )
    return files


def _check_scored(spec: JobSpec, files: list[tuple[Path, str]]) -> None:
    """Raises UsageError for forms that rows to score, or their results, do not have."""
    for path, form in files:
        if form in ("openai", "text"):
            fix = "task score reads jsonl, parquet and arrow: {prefix, continuations}"
            raise UsageError(
                f"a row of format {form} has no continuations", where=str(path), fix=fix
            )
    if spec.output.format == "openai":
        raise UsageError(
            "a batch of OpenAI's has no results of task score",
            where="output.format",
            fix="output.format: jsonl or parquet",
        )
