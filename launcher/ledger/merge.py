"""Merge: when every row is in some journal, the result files in input order. Anybody may do it, any number of times."""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass
from pathlib import Path

from launcher import logs
from launcher.disk import sweep
from launcher.errors import RunFailed
from launcher.input.files import Readers, told
from launcher.input.index import InputIndex, Kind
from launcher.input.results import Record, decode_line, error_row, read_head, result_row
from launcher.ledger.attempts import Fences
from launcher.ledger.reader import Scan
from launcher.ledger.table import write_table
from launcher.records import Failure
from launcher.run import Run, create_exclusive, publish, read_json, sync_file

MAKE_ROOM = "make room there, then launcher resume; nothing is lost"


@dataclass(frozen=True)
class Counts:
    """Rows and tokens of a complete run; the tokens are those of the rows that are ``ok``."""

    total: int
    ok: int
    failed: int
    prompt_tokens: int
    completion_tokens: int


def merge(run: Run) -> Counts | None:
    """Write outputs.jsonl, errors.jsonl and, if asked for, outputs.parquet; None, and nothing written, if rows are missing.

    The first merge that finds every row notes how far it read each journal. From then on nothing that
    anybody appends is looked at, so all merges write the same bytes. Raises RunFailed.
    """
    index = InputIndex(run.input)
    noted = read_json(run.merged)
    found = _Found(run, index, noted)
    if noted is not None and found.missing:
        logs.get_logger().warning("%s: journals were damaged after they were merged", run.journals)
        run.merged.unlink(missing_ok=True)
        noted, found = None, _Found(run, index, None)
    if found.missing:
        return None
    with told("cannot merge the results", run.path, MAKE_ROOM, RunFailed):
        if noted is None:
            own = found.note()
            first = own if create_exclusive(run.merged, json.dumps(own)) else read_json(run.merged)
            found = found if first == own else _Found(run, index, first)
        return _write(run, index, found)


class _Found:
    """Where the first whole record of each row is. 17 bytes a row, however long the records are."""

    def __init__(self, run: Run, index: InputIndex, noted: dict[str, int] | None) -> None:
        journals = [path for path in run.list_journals() if noted is None or path.name in noted]
        fences = Fences(run)
        self.scans = [Scan(index.bad)]
        for path in journals:
            limits = [fences.limit(path), noted[path.name] if noted else None]
            limit = min((size for size in limits if size is not None), default=None)
            self.scans.append(Scan(path, limit=limit))
        self.missing = rows = len(index)
        self._offset, self._length = array("Q", [0]) * rows, array("I", [0]) * rows
        self._scan = array("I", [0]) * rows
        for number, scan in enumerate(self.scans):
            for offset, length, row, _ in scan:
                if row < rows and not self._length[row]:
                    self._offset[row], self._length[row], self._scan[row] = offset, length, number
                    self.missing -= 1

    def note(self) -> dict[str, int]:
        """How far each journal was read, all of it on disk."""
        journals = self.scans[1:]
        for scan in journals:
            sync_file(scan.path)
        return {scan.path.name: scan.position for scan in journals}

    def line(self, row: int, readers: Readers) -> bytes:
        path: Path = self.scans[self._scan[row]].path
        line = readers.read(path, self._offset[row], self._length[row])
        if read_head(line) is None:
            raise RunFailed(f"the record of row {row} changed while it was read", where=str(path))
        return line


def _write(run: Run, index: InputIndex, found: _Found) -> Counts:
    sweep(run.path)
    form, readers = index.meta.output_format, Readers()
    ok = prompt_tokens = completion_tokens = 0
    with (
        publish(run.outputs) as outputs,
        publish(run.errors) as errors,
        outputs.open("wb") as good,
        errors.open("wb") as bad,
    ):
        for row in range(len(index)):
            line = found.line(row, readers)
            record = decode_line(line)
            facts = _facts(index, record) if form == "openai" else {}
            if isinstance(record, Failure):
                bad.write(error_row(record, index.place(row), form, facts))
            else:
                good.write(result_row(line, record, form, facts))
                ok += 1
                prompt_tokens += record.prompt_tokens
                completion_tokens += record.completion_tokens
    readers.close()
    if form == "parquet":
        with publish(run.table) as table:
            write_table(run.outputs, table, index.meta.task)
    return Counts(len(index), ok, len(index) - ok, prompt_tokens, completion_tokens)


def _facts(index: InputIndex, record: Record) -> dict[str, object]:
    chat = index.entry(record.index).kind == Kind.MESSAGES
    return {"chat": chat, "model": index.meta.model, "created": index.meta.created}
