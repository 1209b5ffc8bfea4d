"""The input's index: where every row is, so that any rank can read any row, and notice that it was edited."""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import zlib
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from launcher.disk import REPLACED
from launcher.errors import Damaged, PreflightError, UsageError
from launcher.input.files import Readers
from launcher.input.results import decode_line
from launcher.input.rows import parse_row
from launcher.job.spec import GenerationSpec, Section
from launcher.records import Failure, Request

ROWS, BAD, META = "rows.bin", "bad.jsonl", "meta.json"


class Kind(IntEnum):
    """What a row asks for; ``BAD`` rows are answered already, by a Failure in bad.jsonl."""

    BAD = 0
    PROMPT = 1
    MESSAGES = 2


class Entry(NamedTuple):
    """A row's place: ``length`` bytes at ``offset`` of a file, or of bad.jsonl. ``line`` counts from 1."""

    offset: int
    length: int
    crc: int
    file: int
    line: int
    id_digest: bytes
    kind: int


ENTRY = struct.Struct("<QIIII16sB")
FIELDS = [  # the same for numpy
    ("offset", "<u8"),
    ("length", "<u4"),
    ("crc", "<u4"),
    ("file", "<u4"),
    ("line", "<u4"),
    ("id_high", "<u8"),
    ("id_low", "<u8"),
    ("kind", "u1"),
]


class InputFile(Section):
    """A file of the input as it was when it was indexed."""

    path: str
    format: str
    bytes: int
    mtime_ns: int
    sha256: str
    rows: str | None = (
        None  # of a table: the file in the index's folder that has its rows as JSON lines
    )

    def source(self, folder: Path) -> Path:
        """Where its rows are read, at any offset."""
        return Path(self.path) if self.rows is None else folder / self.rows

    @property
    def row_format(self) -> str:
        return self.format if self.rows is None else "jsonl"


class InputMeta(Section):
    """What is known of the whole input, and what turning its rows into requests and results needs."""

    files: list[InputFile]
    rows: int
    bad_rows: int
    chunk_rows: int
    longest_prompt_bytes: int
    max_new_tokens: int
    generation: GenerationSpec
    output_format: str
    model: str
    created: int  # seconds since the epoch
    task: str = "generate"


def id_digest(row_id: str) -> bytes:
    """16 bytes that stand for an id: a million ids would not fit in memory, these do."""
    return hashlib.blake2b(row_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class InputIndex:
    """The rows of a run's input, by number. ``meta`` is what is known of them all."""

    def __init__(self, folder: Path) -> None:
        """Raises UsageError if ``folder`` holds no index, Damaged if it has lost something of it."""
        self.folder = folder
        try:
            self.meta = InputMeta.model_validate_json((folder / META).read_bytes())
            with (folder / ROWS).open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"the run has no index of its input: {error}", where=str(folder)
            ) from None
        if len(self._map) != self.meta.rows * ENTRY.size:
            raise Damaged(
                f"the index of {self.meta.rows:,} rows has {len(self._map):,} bytes, not {self.meta.rows * ENTRY.size:,}",
                where=str(folder / ROWS),
                cause=REPLACED,
                fix="put it back, or start the job anew",
            )
        self._readers = Readers()

    def __len__(self) -> int:
        return self.meta.rows

    @property
    def bad(self) -> Path:
        """The rows that were bad when the input was indexed, in the form of a journal."""
        return self.folder / BAD

    @property
    def chunks(self) -> int:
        """The number of chunks; chunk ``c`` has the rows ``rows_of(c)``."""
        return -(-self.meta.rows // self.meta.chunk_rows)

    def rows_of(self, chunk: int) -> range:
        first = chunk * self.meta.chunk_rows
        return range(first, min(first + self.meta.chunk_rows, self.meta.rows))

    def entry(self, index: int) -> Entry:
        if not 0 <= index < self.meta.rows:
            raise IndexError(f"row {index} of {self.meta.rows}")
        return Entry(*ENTRY.unpack_from(self._map, index * ENTRY.size))

    def place(self, index: int) -> tuple[str, int]:
        """The file of row ``index``, and its line there: of a table, its row. They are counted from 1."""
        entry = self.entry(index)
        return self.meta.files[entry.file].path, entry.line

    def request(self, index: int) -> Request | Failure:
        """Row ``index``. Raises PreflightError if its bytes are not those that were indexed."""
        entry = self.entry(index)
        if entry.kind == Kind.BAD:
            return self._failure(entry)
        file = self.meta.files[entry.file]
        source = file.source(self.folder)
        data = self._read(source, entry)
        if zlib.crc32(data) != entry.crc or len(data) != entry.length:
            raise PreflightError(
                "this row of the input is not what it was when the run was made",
                where=f"{source}:{entry.line}",
                cause=f"the file was edited; {entry.length} bytes at offset {entry.offset} differ",
                fix=f"put back the file with sha256 {file.sha256[:16]}..., or start a new run",
            )
        return parse_row(data, file.row_format, index, self.meta.generation, self.meta.task)

    def _failure(self, entry: Entry) -> Failure:
        record = decode_line(self._read(self.bad, entry))
        assert isinstance(record, Failure)
        return record

    def _read(self, path: Path, entry: Entry) -> bytes:
        try:
            return self._readers.read(path, entry.offset, entry.length)
        except OSError as error:
            raise PreflightError(
                f"cannot read the input: {os.strerror(error.errno or 0)}",
                where=f"{path}:{entry.line}",
                cause="it was moved, or this host does not see it",
                fix="put it back where it was, on a filesystem that all nodes share",
            ) from error

    def close(self) -> None:
        self._readers.close()
        self._map.close()
