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
        "logprobs": "logprobs",
        "choices": "choices",
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

    nested = {
        "scores": _scores(pyarrow),
        "logprobs": _logprobs(pyarrow),
        "choices": _choices(pyarrow),
    }
    schema = pyarrow.schema(
        [(name, nested.get(kind, kind)) for name, kind in COLUMNS[task].items()]
    )
    with parquet.ParquetWriter(target, schema) as writer, outputs.open("rb") as lines:
        while group := list(_group(lines)):
            writer.write_batch(pyarrow.RecordBatch.from_pylist(group, schema=schema))


def _scores(pyarrow: Any) -> Any:
    """The type of records.Score's `scores`."""
    number, numbers = pyarrow.float64(), pyarrow.list_(pyarrow.float64())
    score = {"logprob": number, "mean_logprob": number, "tokens": numbers}
    score["token_ids"] = pyarrow.list_(pyarrow.int64())
    return pyarrow.list_(pyarrow.struct(list(score.items())))


def _logprobs(pyarrow: Any) -> Any:
    """The type of records.Generation's `logprobs`; null of a row that did not ask for them."""
    entry = {"token": pyarrow.string(), "logprob": pyarrow.float64()}
    entry["bytes"] = pyarrow.list_(pyarrow.int64())
    tops = pyarrow.list_(pyarrow.struct(list(entry.items())))
    return pyarrow.list_(pyarrow.struct([*entry.items(), ("top_logprobs", tops)]))


def _choices(pyarrow: Any) -> Any:
    """The type of records.Generation's `choices`; null of a row that asked for one answer."""
    choice = {"text": pyarrow.string(), "finish_reason": pyarrow.string()}
    choice |= {"completion_tokens": pyarrow.int64(), "logprobs": _logprobs(pyarrow)}
    return pyarrow.list_(pyarrow.struct(list(choice.items())))


def _group(lines: Any) -> Iterator[dict[str, Any]]:
    size = 0
    for line in islice(lines, GROUP_ROWS):
        yield json.loads(line)
        size += len(line)
        if size >= GROUP_BYTES:
            return
