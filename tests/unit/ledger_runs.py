"""Runs for the ledger's tests: a directory with an index, and rows to put into journals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from launcher import ledger
from launcher.input.prompts import build_index
from launcher.job.spec import JobSpec
from launcher.records import Attempt, Failure, Generation
from launcher.run import Run

FIRST = Attempt(0, 1)


def make_run(
    tmp_path: Path, rows: int | list[dict[str, Any]], writers: int = 1, output: str = "jsonl"
) -> Run:
    """A run over that many rows (ids ``r0``, ``r1`` ...), or over those given."""
    if isinstance(rows, int):
        rows = [{"id": f"r{i}", "prompt": f"prompt {i}"} for i in range(rows)]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = Run.create(tmp_path / "run")
    spec = {
        "name": "t",
        "model": {"path": "m"},
        "input": {"path": str(source)},
        "output": {"format": output},
    }
    build_index(JobSpec.model_validate(spec), run.input, writers)
    return run


def answer(row: int, text: str = "text") -> Generation:
    return Generation(row, f"r{row}", f"{text} {row}", "stop", 2, 3)


def fail(row: int) -> Failure:
    return Failure(row, f"r{row}", "too_long", "longer than the model's context")


def write(run: Run, attempt: Attempt, rank: int, *records: Generation | Failure) -> None:
    """One whole journal."""
    with ledger.Journal(run, attempt, rank) as journal:
        for record in records:
            journal.append(record)


def rows_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]
