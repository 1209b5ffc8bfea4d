"""Indexer: reads the input once and writes its index, holding no row longer than its turn. The submitter runs it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from launcher import crash
from launcher.disk import publish
from launcher.errors import PreflightError
from launcher.input import columnar
from launcher.input.codes import quote
from launcher.input.files import MAX_LINE_BYTES, Line, Readers, open_input, read_lines
from launcher.input.index import (
    BAD,
    ENTRY,
    FIELDS,
    META,
    ROWS,
    Entry,
    InputFile,
    InputMeta,
    Kind,
    id_digest,
)
from launcher.input.questions import byte_length, room_bytes
from launcher.input.results import encode_line
from launcher.input.rows import parse_row
from launcher.job.spec import GenerationSpec, JobSpec
from launcher.records import Demand, Failure, Request

SAMPLE = 256  # rows whose lengths stand for all: so many, and up to twice as many
EXCERPTS, EXCERPT_LETTERS = 16, 1000


@dataclass
class Tally:
    """What the rows so far ask of a plan."""

    generation: GenerationSpec
    task: str = "generate"
    rows: int = 0
    longest: int = 0  # bytes of a prompt, or of all messages of a row
    max_new_tokens: int = 0
    sample: list[tuple[int, int]] = field(default_factory=list)  # of every ``_every``th good row
    excerpts: list[str] = field(default_factory=list)
    scored: int = 0  # bytes of continuations
    _every: int = 1
    _good: int = 0  # rows
    _sequences: int = 0  # of them: one for each answer

    def add(self, line: Line, form: str) -> Request | Failure:
        """The row in ``line``, counted."""
        index = self.rows
        self.rows += 1
        if line.data is None:
            what = f"the line is longer than {MAX_LINE_BYTES} bytes"
            return Failure(index, str(index), "line_too_long", what)
        row = parse_row(line.data, form, index, self.generation, self.task)
        if isinstance(row, Request):
            self._count(row)
        return row

    def _count(self, row: Request) -> None:
        size, new = _prompt_bytes(row), row.sampling.max_new_tokens
        self.longest = max(self.longest, size)
        if row.continuations:
            self.max_new_tokens = max(self.max_new_tokens, room_bytes(row.continuations))
            scored = sum(map(byte_length, row.continuations))
            self.scored += scored
            self._keep(row, size + scored, 1)
        else:
            self.max_new_tokens = max(self.max_new_tokens, new)
            self._keep(row, size, new)

    def _keep(self, row: Request, size: int, new: int) -> None:
        """Take the row's sequences into the sample, which stays evenly spread over all of them so far."""
        answers = row.sampling.n
        before, self._sequences = self._sequences, self._sequences + answers
        taken = -(-self._sequences // self._every) - -(-before // self._every)
        self.sample += [(size, new)] * taken
        if taken and len(self.excerpts) < EXCERPTS:
            text = row.prompt or str((row.messages or [{}])[-1].get("content", ""))
            self.excerpts.append(text[:EXCERPT_LETTERS])
        self._good += 1
        while len(self.sample) >= 2 * SAMPLE:
            self.sample = self.sample[::2]
            self._every *= 2

    def demand(self) -> Demand:
        asked = self.max_new_tokens or self.generation.max_new_tokens
        return Demand(
            self.rows,
            self.longest,
            asked,
            sample=tuple(self.sample),
            excerpts=tuple(self.excerpts),
            scored_bytes=self.scored / max(1, self._good),
            answers=self._sequences / self._good if self._good else self.generation.n,
        )


def _prompt_bytes(request: Request) -> int:
    messages = request.messages or [{"content": request.prompt}]
    texts = [message["content"] for message in messages]
    extras = [request.tools, *(message.get("tool_calls") for message in messages)]
    texts += [json.dumps(extra) for extra in extras if extra]
    return sum(map(byte_length, texts))


class Indexer:
    """Context manager: ``add_file`` for each file, ``fail_duplicates``, ``publish``. Raises OSError."""

    def __init__(self, folder: Path, generation: GenerationSpec, task: str = "generate") -> None:
        self.folder = folder
        self.tally = Tally(generation, task)
        self.files: list[InputFile] = []
        self.bad_rows = 0

    def __enter__(self) -> Indexer:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._entries: BinaryIO = (self.folder / ROWS).open("wb")
        self._bad: BinaryIO = (self.folder / BAD).open("wb")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._entries.close()
        self._bad.close()

    def add_file(self, path: Path, form: str) -> None:
        """Raises PreflightError if the file changes while it is read."""
        digest = hashlib.sha256()
        with self._unchanged(path, form, digest) as file:
            for line in read_lines(file, digest.update):
                self._add(line, form)

    def add_table(self, path: Path, form: str, columns: Mapping[str, str]) -> None:
        """A Parquet or Arrow file: its rows are copied into the index as JSON lines, which every node can read at
        any place without pyarrow. Raises PreflightError if the file changes while it is read."""
        digest, copy = hashlib.sha256(), self.folder / f"rows-{len(self.files):04d}.jsonl"
        with self._unchanged(path, form, digest, copy.name) as file:
            while block := file.read(1 << 20):
                digest.update(block)
            with copy.open("w+b") as lines:
                lines.writelines(columnar.rows(path, form, columns, self.tally.task))
                lines.flush()
                os.fsync(lines.fileno())
                lines.seek(0)
                for line in read_lines(lines, len):
                    self._add(line, "jsonl")

    @contextlib.contextmanager
    def _unchanged(
        self, path: Path, form: str, digest: hashlib._Hash, rows: str | None = None
    ) -> Iterator[BinaryIO]:
        """The file, to be read by the block; it is in ``files`` afterwards."""
        with open_input(path) as file:
            before = os.fstat(file.fileno())
            yield file
            after = os.fstat(file.fileno())
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            fix = "submit when nobody writes it any more"
            raise PreflightError("the input changed while it was read", where=str(path), fix=fix)
        known = InputFile(
            path=str(path),
            format=form,
            bytes=after.st_size,
            mtime_ns=after.st_mtime_ns,
            sha256=digest.hexdigest(),
            rows=rows,
        )
        self.files.append(known)

    def _add(self, line: Line, form: str) -> None:
        row = self.tally.add(line, form)
        data = line.data or b""
        if isinstance(row, Failure):
            offset, length = self._write_bad(row)
            kind = Kind.BAD
        else:
            offset, length = line.offset, len(data)
            kind = Kind.PROMPT if row.messages is None else Kind.MESSAGES
        crc, file = zlib.crc32(data), len(self.files)
        entry = Entry(offset, length, crc, file, line.number, id_digest(row.id), kind)
        self._entries.write(ENTRY.pack(*entry))

    def _write_bad(self, failure: Failure) -> tuple[int, int]:
        """Offset and length of the failure's record in bad.jsonl."""
        self.bad_rows += 1
        return self._bad.tell(), self._bad.write(encode_line(failure))

    def fail_duplicates(self) -> None:
        """Of several good rows with one id, all but the first become failures."""
        import numpy

        self._entries.flush()
        rows = numpy.memmap(self.folder / ROWS, dtype=FIELDS, mode="r+")
        good = numpy.flatnonzero(rows["kind"] != Kind.BAD)
        high, low = rows["id_high"][good], rows["id_low"][good]
        order = numpy.lexsort((low, high))  # stable: rows of one id stay in input order
        same = (high[order[1:]] == high[order[:-1]]) & (low[order[1:]] == low[order[:-1]])
        readers = Readers()
        first = -1
        for place in numpy.flatnonzero(same).tolist():
            if place == 0 or not same[place - 1]:
                first = int(good[order[place]])
            self._fail_duplicate(rows, int(good[order[place + 1]]), first, readers)
        readers.close()
        rows.flush()

    def _fail_duplicate(self, rows: Any, index: int, first: int, readers: Readers) -> None:
        def parsed(place: int, number: int) -> Request | Failure:
            file, offset, length = (int(rows[key][place]) for key in ("file", "offset", "length"))
            data = readers.read(self.files[file].source(self.folder), offset, length)
            form = self.files[file].row_format
            return parse_row(data, form, number, self.tally.generation, self.tally.task)

        row_id = parsed(index, index).id

        def named(place: int) -> bool:
            """Whether the row gives its id: one that does not is called by its number."""
            return row_id != str(place) or parsed(place, -1).id == row_id

        there = f"{self.files[rows['file'][first]].path}:{rows['line'][first]}"
        if not named(index):
            message = (
                f"the row has no id, so its number {row_id} is its id: {there} has that already"
            )
        elif not named(first):
            message = f"{there} has no id, so its number {row_id} is its id, which this row has too"
        else:
            message = f"the id {quote(row_id)} is that of {there} already"
        failure = Failure(index, row_id, "duplicate_id", message)
        rows["offset"][index], rows["length"][index] = self._write_bad(failure)
        rows["kind"][index] = Kind.BAD

    def publish(self, spec: JobSpec, rows_per_chunk: int) -> None:
        """meta.json comes last, when all else is on disk: a folder that has one holds a whole index."""
        meta = InputMeta(
            files=self.files,
            rows=self.tally.rows,
            bad_rows=self.bad_rows,
            chunk_rows=rows_per_chunk,
            longest_prompt_bytes=self.tally.longest,
            max_new_tokens=self.tally.max_new_tokens,
            generation=self.tally.generation,
            output_format=spec.output.format,
            model=spec.model.path,
            created=int(time.time()),
            task=self.tally.task,
        )
        for file in (self._entries, self._bad):
            file.flush()
        crash.point("written", self.folder / ROWS)
        for file in (self._entries, self._bad):
            os.fsync(file.fileno())
        crash.point("synced", self.folder / ROWS)
        with publish(self.folder / META) as temporary:
            temporary.write_text(meta.model_dump_json(indent=1) + "\n")
