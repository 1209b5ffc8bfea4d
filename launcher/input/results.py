"""How what became of a row is written: the checksummed line of a journal, and the forms of the results."""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import replace
from typing import Any

from launcher.input import openai
from launcher.records import Failure, Generation, Score

Record = Generation | Score | Failure

# encode_line writes the index first and the id second, so that a reader need not parse the rest.
_HEAD = re.compile(rb'\{"index": (\d+), "id": "(?:[^"\\]|\\.)*", "(?:(code)|\w+)"')


def encode_line(record: Record) -> bytes:
    """``<crc32 of the JSON as 8 hex digits> <JSON>\\n``; the JSON is the record's row of format jsonl."""
    told = {key: value for key, value in vars(record).items() if value is not None}
    payload = json.dumps(told).encode()
    return b"%08x %s\n" % (zlib.crc32(payload), payload)


def read_head(line: bytes) -> tuple[int, bool] | None:
    """The index of a journal's line, and whether it is a Failure; None unless the line is whole."""
    payload = line[9:-1]
    if line[-1:] != b"\n" or line[:9] != b"%08x " % zlib.crc32(payload):
        return None
    head = _HEAD.match(payload)
    return (int(head[1]), head[2] is not None) if head else None


def decode_line(line: bytes) -> Record:
    """The record in a whole line."""
    fields: dict[str, Any] = json.loads(line[9:])
    if "code" in fields:
        return Failure(**fields)
    return Score(**fields) if "scores" in fields else Generation(**fields)


def result_row(line: bytes, record: Record, form: str, facts: dict[str, Any]) -> bytes:
    """The row of a result file of format ``form`` (jsonl, openai) for ``record``, which ``line`` holds.

    ``facts`` are ``openai.result_of``'s keywords.
    """
    if form == "openai":
        assert not isinstance(record, Score), "no batch asks for scores"
        return json.dumps(openai.result_of(record, **facts)).encode() + b"\n"
    return line[9:]


def error_row(failure: Failure, place: tuple[str, int], form: str, facts: dict[str, Any]) -> bytes:
    """As ``result_row``, with the file and line of the input where ``failure`` is: the API's form has its message for them."""
    file, line = place
    if form == "openai":
        failure = replace(failure, message=f"{failure.message} ({file}:{line})")
        return result_row(b"", failure, form, facts)
    return json.dumps({**vars(failure), "file": file, "line": line}).encode() + b"\n"


def read_result(row: bytes, form: str) -> tuple[int, str]:
    """Index and id of a row of a result file. Raises ValueError for anything else."""
    fields = json.loads(row)
    try:
        if form == "openai":
            return int(fields["id"].removeprefix("batch_req_")), str(fields["custom_id"])
        return int(fields["index"]), str(fields["id"])
    except (KeyError, TypeError, AttributeError):
        raise ValueError("not a row of a result file") from None
