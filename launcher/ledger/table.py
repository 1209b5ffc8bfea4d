"""The outputs as a Parquet file, made from outputs.jsonl a batch at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from launcher.input.columnar import require_pyarrow

# Of a row of outputs.jsonl; every column is there in every file, so that files of several runs go together.
COLUMNS = {
    "index": "int64",
    "id": "string",
    "text": "string",
    "finish_reason": "string",
    "prompt_tokens": "int64",
    "completion_tokens": "int64",
}
GROUP_ROWS, GROUP_BYTES = 16_384, 8 << 20


def write_table(outputs: Path, target: Path) -> None:
    """Write the rows of ``outputs`` (outputs.jsonl) to ``target``. Raises PreflightError without pyarrow."""
    require_pyarrow("output.format: parquet")
    import pyarrow
    from pyarrow import parquet

    schema = pyarrow.schema(list(COLUMNS.items()))
    with parquet.ParquetWriter(target, schema) as writer, outputs.open("rb") as lines:
        while group := list(_group(lines)):
            writer.write_batch(pyarrow.RecordBatch.from_pylist(group, schema=schema))


def _group(lines: Any) -> Iterator[dict[str, Any]]:
    size = 0
    for line in islice(lines, GROUP_ROWS):
        yield json.loads(line)
        size += len(line)
        if size >= GROUP_BYTES:
            return
