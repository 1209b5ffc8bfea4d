"""Prompts: what the input asks of a plan, and its rows as an index that any rank can read from.

One bad row is one Failure, never the end of a run.
"""

from __future__ import annotations

from pathlib import Path

from launcher.errors import UsageError
from launcher.input.files import TO_JSONL, detect_format, find_files, open_input, read_lines, told
from launcher.input.index import InputIndex
from launcher.input.indexer import Indexer, Tally
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
    _check_formats(spec)
    paths = find_files(spec.input)
    with told("cannot index the input", folder), Indexer(folder, spec.generation) as indexer:
        for path in paths:
            indexer.add_file(path, detect_format(path, spec.input.format))
        rows = indexer.tally.rows
        if not rows:
            raise UsageError("the input holds no rows", where=", ".join(map(str, paths)))
        indexer.fail_duplicates()
        indexer.publish(spec, chunk_rows(rows, writers))
    return indexer.tally.demand()


def chunk_rows(rows: int, writers: int) -> int:
    """Rows of a chunk: so few that every writer gets 16 chunks, so many that there are at most MAX_CHUNKS."""
    wanted = max(1, min(MAX_CHUNK_ROWS, rows // (writers * 16)))
    return max(wanted, -(-rows // MAX_CHUNKS))


def scan(spec: JobSpec, limit_bytes: int) -> Demand:
    """A look at the first ``limit_bytes`` of the input; exact if that is all of it.

    Beyond that, the number of rows is estimated from the files' sizes. Raises UsageError.
    """
    _check_formats(spec)
    paths = find_files(spec.input)
    tally, read = Tally(spec.generation), 0
    for path in paths:
        form = detect_format(path, spec.input.format)
        with open_input(path) as file:
            for line in read_lines(file, len):
                tally.add(line, form)
                if read + line.offset >= limit_bytes:
                    break
            read += file.tell()
        if read >= limit_bytes:
            break
    total = sum(path.stat().st_size for path in paths)
    if read >= total:
        return tally.demand()
    rows = max(tally.rows, round(tally.rows * total / read))
    return Demand(rows, tally.longest, tally.max_new_tokens, exact=False)


def _check_formats(spec: JobSpec) -> None:
    if spec.input.format == "parquet":
        fix = f"convert the input: {TO_JSONL}"
        raise UsageError("Parquet input is not supported yet", where="input.format", fix=fix)
    if spec.output.format == "parquet":
        fix = "output.format: jsonl, and convert the results afterwards"
        raise UsageError("Parquet output is not supported yet", where="output.format", fix=fix)
