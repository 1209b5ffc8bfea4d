"""Jobs for tests: specs over the tiny model, the command line as a user runs it, and an independent look at results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from adder import adder_path, prompt_rows

# What hangs is told after this; what does not is never held to it, on however slow and busy a machine.
PATIENCE_S = 300.0


def write_job(folder: Path, rows: int | Sequence[dict[str, Any]] = 40, **sections: Any) -> Path:
    """A spec in ``folder`` with its prompts beside it; ``sections`` are merged into it, one level deep."""
    if isinstance(rows, int):
        rows = prompt_rows(rows)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec: dict[str, Any] = {
        "name": "test",
        "model": {"path": str(adder_path()), "dtype": "float32"},
        "parallel": {"strategy": "sequential"},
        "batch": {"slots": 4},
        "input": {"path": "prompts.jsonl"},
        "generation": {"max_new_tokens": 8},
        "resources": {"device": "cpu"},
        "limits": {"join": "240s", "step": "240s", "stall": "240s", "drain": "120s"},
    }
    for name, section in sections.items():
        spec[name] = {**spec.get(name, {}), **section} if isinstance(section, dict) else section
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    return path


SEVEN = "29"  # the token of 7


def mixed_rows(count: int) -> list[dict[str, Any]]:
    """Sums, every fourth of them sampled rather than taken greedily, half of these twice, and every fourth with changed
    logits."""
    found = prompt_rows(count)
    for number in range(0, count, 4):
        found[number] |= {
            "temperature": 1.5,
            "top_p": 0.9,
            "seed": number,
            "n": 1 + number // 4 % 2,
        }
    for number in range(1, count, 4):
        found[number] |= {"frequency_penalty": 2, "presence_penalty": 1, "logit_bias": {SEVEN: 25}}
    return found


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "launcher", *map(str, arguments)]


def launcher(
    *arguments: str | Path,
    code: int = 0,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end and hold its exit code to ``code``."""
    done = subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        env={**os.environ, **(env or {})},
        cwd=cwd,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def journaled(run: Path) -> int:
    """Lines in the run's journals so far."""
    return sum(path.read_bytes().count(b"\n") for path in (run / "journals").glob("*.jsonl"))


def texts(run: Path) -> dict[str, str]:
    """Text by id. Holds that no id is there twice, in the outputs or in outputs and errors."""
    rows, errors = read_rows(run / "outputs.jsonl"), read_rows(run / "errors.jsonl")
    ids = [row["id"] for row in (*rows, *errors)]
    assert len(ids) == len(set(ids))
    assert [row["index"] for row in rows] == sorted(row["index"] for row in rows)
    return {row["id"]: row["text"] for row in rows}


def wait_for(what: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    """The first truthy answer of ``what``."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what} did not come true in {patience_s} s")
