"""Manifest: the last file of a run, and the check that its results are what it says."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from launcher.disk import REPLACED
from launcher.errors import Damaged, RunFailed
from launcher.input.files import told
from launcher.input.index import InputIndex, id_digest
from launcher.input.results import read_result
from launcher.ledger.merge import MAKE_ROOM, Counts
from launcher.ledger.reader import missing_rows
from launcher.run import Run, read_json, write_json

MOST_PROBLEMS = 20


class Rows(BaseModel):
    """How many there are, and how many of them are in outputs.jsonl and errors.jsonl."""

    total: int
    ok: int
    failed: int


class Tokens(BaseModel):
    """Of the rows that are ok."""

    prompt: int
    completion: int


class Manifest(BaseModel):
    """manifest.json. ``sha256`` by name of result file; ``input``: path, bytes and sha256 of each file."""

    rows: Rows
    tokens: Tokens
    sha256: dict[str, str]
    input: list[dict[str, Any]]


def read_manifest(run: Run) -> dict[str, Any] | None:
    """As Manifest says; None while the run is not complete. Raises Damaged where it is not what was written."""
    found: dict[str, Any] | None = read_json(run.manifest)
    try:
        if found is not None:
            Manifest.model_validate(found)
    except ValidationError as error:
        places = ", ".join(sorted({str(problem["loc"][0]) for problem in error.errors()}))
        raise Damaged(
            f"not a manifest: {places}",
            where=str(run.manifest),
            cause=REPLACED,
            fix=f"remove it; launcher resume {run.path} then writes it anew",
        ) from None
    return found


def write_manifest(run: Run, counts: Counts) -> None:
    """Declare the run complete: call it when all other files are there. Raises RunFailed."""
    with told("cannot write the manifest", run.path, MAKE_ROOM, RunFailed):
        index = InputIndex(run.input) if run.has_rows else None
        manifest = {
            "rows": {"total": counts.total, "ok": counts.ok, "failed": counts.failed},
            "tokens": {"prompt": counts.prompt_tokens, "completion": counts.completion_tokens},
            "sha256": {path.name: _sha256(path) for path in results(run)},
            "input": _input(index) if index else [],
        }
        write_json(run.manifest, manifest)


def verify(run: Run) -> list[str]:
    """What is wrong with the results of a run, at most 20 sentences; none if it keeps its promises.

    Every row is in exactly one result file, in input order, under its id; the files are those that the
    manifest names.
    """
    try:
        manifest = read_manifest(run)
    except Damaged as error:
        return [str(error)]
    if manifest is None:
        return [_not_complete(run)]
    if not run.has_rows:
        return []  # what a script made, it alone can judge
    index = InputIndex(run.input)
    return list(islice(_problems(run, manifest, index), MOST_PROBLEMS))


def _not_complete(run: Run) -> str:
    if not run.has_rows:
        return "the run is not complete: no attempt of its script has ended well on all ranks"
    left = missing_rows(run)
    what = (
        f"{left:,} of its rows are still to be done" if left else "its results are not gathered yet"
    )
    return f"the run is not complete: {what}"


def _problems(run: Run, manifest: dict[str, Any], index: InputIndex) -> Iterator[str]:
    absent = [path.name for path in results(run) if not path.is_file()]
    yield from (f"{name} is missing; launcher resume gathers it again" for name in absent)
    if absent:
        return
    for path in results(run):
        if _sha256(path) != manifest["sha256"].get(path.name):
            yield f"{path.name} is not the file that the manifest names"
    if manifest["input"] != _input(index):
        yield "the manifest names another input than the run's index"
    if manifest["rows"]["total"] != len(index):
        yield f"the manifest counts {manifest['rows']['total']} rows, the input has {len(index)}"
    yield from _row_problems(run, index)


def results(run: Run) -> list[Path]:
    """The files that a complete run has for its rows."""
    if not run.has_rows:
        return []
    table = [run.table] if InputIndex(run.input).meta.output_format == "parquet" else []
    return [run.outputs, run.errors, *table]


def _row_problems(run: Run, index: InputIndex) -> Iterator[str]:
    form, due = index.meta.output_format, 0
    results = [_results(path, form) for path in (run.outputs, run.errors)]
    for row, row_id, where in heapq.merge(*results, key=lambda result: result[0]):
        if row < 0:
            yield f"{where} is not a result"
            continue
        if row >= len(index):
            yield f"{where}: the input has no row {row}"
            continue
        if row > due:
            yield f"{_rows(due, row)} missing before {where}"
        elif row < due:
            yield f"{where}: row {row} is out of order or there twice"
        if id_digest(row_id) != index.entry(row).id_digest:
            yield f"{where}: row {row} has an id that is not the input's"
        due = max(due, row + 1)
    if due < len(index):
        yield f"{_rows(due, len(index))} missing at the end"


def _results(path: Path, form: str) -> Iterator[tuple[int, str, str]]:
    """Row, id and place of every line; row -1 if it is no result."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path.name}:{number}"
            try:
                yield *read_result(line, form), where
            except (ValueError, OverflowError, RecursionError):
                yield -1, "", where


def _rows(first: int, end: int) -> str:
    return f"row {first} is" if end - first == 1 else f"rows {first} to {end - 1} are"


def _input(index: InputIndex) -> list[dict[str, Any]]:
    return [
        {"path": file.path, "bytes": file.bytes, "sha256": file.sha256} for file in index.meta.files
    ]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
