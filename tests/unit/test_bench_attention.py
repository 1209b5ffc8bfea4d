"""`launcher bench attention`: what it measures, what it says where a kind can't run, what it refuses."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
import torch
from adder import adder_path
from jobs import launcher
from rich.console import Console

from launcher.bench import attention, machine
from launcher.errors import RunFailed, UsageError
from launcher.report.measures import attention_table


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread, one round, and a model that is small even for a test."""
    monkeypatch.setattr(attention.environ, "cpus", lambda: 1)
    monkeypatch.setattr(attention, "ROUNDS", 1)
    monkeypatch.setitem(attention.SMALL, "hidden_size", 64)


def compare(lengths: list[int], model: Path | None = None) -> dict:
    return attention.compare(lengths, 2, model, lambda _: None)


def test_every_kind_and_length_with_and_without_cache() -> None:
    found = compare([8, 32])
    kinds = [kind for kind in attention.KINDS if kind not in found["unavailable"]]
    assert {"eager", "sdpa"} <= set(kinds)
    measured = [(row["attention"], row["length"]) for row in found["results"]]
    assert measured == [(kind, length) for kind in kinds for length in (8, 32)]
    for row in found["results"]:
        assert row["prefill_s"] > 0
        assert set(row["tokens_per_s"]) == {"cache", "no_cache"}
    if not torch.cuda.is_available():
        assert "CUDA" in found["unavailable"]["flash_attention_2"]


def test_a_checkpoint_or_its_config_alone(tmp_path: Path) -> None:
    assert compare([8], adder_path())["model"] == str(adder_path())
    (tmp_path / "config.json").write_bytes((adder_path() / "config.json").read_bytes())
    assert len(compare([8], tmp_path)["results"]) >= 2
    with pytest.raises(UsageError, match="positions"):
        compare([100_000], adder_path())
    with pytest.raises(UsageError, match="no model here"):
        compare([8], tmp_path / "nothing")


def test_the_command_prints_json_or_a_table() -> None:
    small = ["bench", "attention", "--lengths", "8", "--new-tokens", "1", "--model", adder_path()]
    one = {"SLURM_CPUS_ON_NODE": "1"}  # threads that share a core with other tests take minutes
    found = json.loads(launcher(*small, "--json", env=one).stdout)
    assert found["new_tokens"] == 1
    with Console(file=StringIO(), width=100) as console:
        console.print(attention_table(found))
    table = console.file.getvalue()
    assert "sdpa" in table
    assert "without cache" in table
    assert "--lengths" in launcher("bench", "attention", "--lengths", "x", code=2).stderr


def test_ranks_that_take_too_long_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PATIENCE_S", 0.0)
    with pytest.raises(RunFailed, match=r"ranks \[0, 1\] of 2 had not measured all within"):
        machine._world("cpu", 2, 1, tmp_path)
