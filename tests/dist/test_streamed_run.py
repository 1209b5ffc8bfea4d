"""Streaming through the command line: the texts are those of the model in memory, the summary says what was read,
and a run whose files are damaged under way ends with their name and can be resumed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from adder import adder_path
from gate import Gate
from jobs import PATIENCE_S, command, journaled, launcher, mixed_rows, texts, wait_for, write_job

ROWS = 60
PARTS = ("busy", "transfer", "weights", "bubble", "host_gap", "no_work")


def streamed(folder: Path, count: int = ROWS, model: Path | None = None, **options: Any) -> Path:
    # The model is tiny: a budget of little more than the framework's own memory keeps nothing of it.
    return write_job(
        folder,
        mixed_rows(count),
        model={"path": str(model or adder_path())},
        parallel={"strategy": "streamed", "options": {"memory": "771MiB", **options}},
        batch={"slots": 4, "groups": 3},
    )


def test_texts_are_those_of_the_model_in_memory(
    tmp_path: Path, whole_texts: Callable[[int], dict[str, str]]
) -> None:
    spec = streamed(tmp_path, spill_dir=str(tmp_path / "spill"))
    launcher("run", spec, "--run-dir", tmp_path / "run")
    assert texts(tmp_path / "run") == whole_texts(ROWS)
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    streaming = plan["placements"][0]["streaming"]
    assert streaming["layers"] < 8
    assert streaming["groups"] < 3
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    (stage,) = summary["stages"]
    assert sum(stage[part] for part in PARTS) == pytest.approx(1.0)
    assert stage["weights"] > 0
    assert stage["transfer"] > 0
    assert stage["peak_memory_bytes"] <= 771 * 2**20
    assert 0 < stage["weights_bytes"] <= stage["predicted"]["weights_bytes"]
    assert 0 < stage["kv_bytes"] <= stage["predicted"]["kv_bytes"]
    assert summary["read_bytes_per_token"] > 0
    read = summary["read_bytes_per_token"] * summary["tokens"]["completion"]
    assert summary["read_rate"] == pytest.approx(read / summary["generate_s"])
    assert summary["storage_rate"] > 0
    assert list((tmp_path / "spill").iterdir()) == []


def test_file_that_is_cut_short_under_way(
    tmp_path: Path, whole_texts: Callable[[int], dict[str, str]]
) -> None:
    model = shutil.copytree(adder_path(), tmp_path / "model")
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    spec, run = streamed(tmp_path / "job", count=40, model=model), tmp_path / "run"
    gate = Gate(tmp_path / "gate", 20)
    process = subprocess.Popen(
        command("run", spec, "--run-dir", run),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **gate.env},
    )
    gate.wait()
    os.truncate(weights, len(whole) // 2)
    gate.open()
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode != 0
    assert str(weights) in said.decode()
    assert "launcher resume" in said.decode()
    done = journaled(run)
    weights.write_bytes(whole)
    launcher("resume", run)
    assert texts(run) == whole_texts(40)
    assert done < 40


def test_budget_that_is_too_small_is_refused_by_plan(tmp_path: Path) -> None:
    spec = streamed(tmp_path, memory="700MiB")
    refused = json.loads(launcher("plan", spec, "--json", code=3).stdout)
    assert not refused["fits"]
    assert any("smallest that works" in reason for reason in refused["reasons"])
