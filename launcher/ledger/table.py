"""The outputs as a Parquet file, made from outputs.jsonl a batch at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from launcher.input.columnar import require_pyarrow

# Of a row of outputs.jsonl, by task; every column is there in every file, so that files of several runs go together.
_TOKENS = {"prompt_tokens": "int64", "completion_tokens": "int64"}
COLUMNS: dict[str, dict[str, str]] = {
    "generate": {
        "index": "int64",
        "id": "string",
        "text": "string",
        "finish_reason": "string",
        **_TOKENS,
    },
    "score": {
        "index": "int64",
        "id": "string",
        "scores": "scores",
        "best": "int64",
        "best_mean": "int64",
        **_TOKENS,
    },
}
GROUP_ROWS, GROUP_BYTES = 16_384, 8 << 20


def write_table(outputs: Path, target: Path, task: str = "generate") -> None:
    """Write the rows of ``outputs`` (outputs.jsonl of ``task``) to ``target``. Raises PreflightError without pyarrow."""
    require_pyarrow("output.format: parquet")
    import pyarrow
    from pyarrow import parquet

    number, numbers = pyarrow.float64(), pyarrow.list_(pyarrow.float64())
    score = {"logprob": number, "mean_logprob": number, "tokens": numbers}
    score["token_ids"] = pyarrow.list_(pyarrow.int64())
    scores = pyarrow.list_(pyarrow.struct(list(score.items())))
    columns = COLUMNS[task].items()
    schema = pyarrow.schema(
        [(name, scores if kind == "scores" else kind) for name, kind in columns]
    )
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
