"""`launcher bench scale`: the plan of one world as a fleet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launcher.cli import app
from launcher.errors import UsageError

CONFIG = str(Path(__file__).parents[2] / "configs" / "llama2-70b-pipeline.yaml")


def invoke(*arguments: str, config: str = CONFIG) -> str:
    result = CliRunner().invoke(app, ["bench", "scale", config, *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_fleets_of_the_sizes_that_were_asked_for() -> None:
    given = ("--worlds", "2,20", "--tokens-per-s", "2560", "--mtbf-days", "0", "--stragglers", "0")
    found = json.loads(invoke(*given, "--rows", "100000", "--json"))
    assert found["rows_per_s"] == 10  # 256 new tokens each
    two, twenty = found["fleets"]
    assert (two["worlds"], two["nodes"], two["gpus"]) == (2, 4, 16)
    assert two["seconds"] == two["undisturbed_s"]
    # 138 GB per node, or 20 times two copies by all of them together; chunks are not shared out evenly.
    assert two["seconds"] == pytest.approx(60 + 69 + 100_000 / 20, rel=0.02)
    assert twenty["seconds"] == pytest.approx(60 + 276 + 100_000 / 200, rel=0.1)
    assert two["failures"] == 0
    shares = [load["share"] for load in twenty["loads"]]
    assert shares == sorted(shares, reverse=True)


def test_a_plan_of_few_rows_stands_for_worlds_with_rows_enough(tmp_path: Path) -> None:
    """Of an array of 100 worlds with one row, 99 have nothing to do; here all have."""
    (tmp_path / "many.jsonl").write_text('{"prompt": "1+1="}\n' * 200)
    (tmp_path / "one.jsonl").write_text('{"prompt": "1+1="}\n')
    speeds = [
        json.loads(invoke(f"input.path={tmp_path}/{name}.jsonl", "slurm.array=100", "--json"))
        for name in ("many", "one")
    ]
    assert speeds[0]["rows_per_s"] == pytest.approx(speeds[1]["rows_per_s"])


def test_rows_have_the_tokens_that_the_plan_counts(tmp_path: Path) -> None:
    rows = [{"prompt": "1 + 1 =", "max_new_tokens": 100}, {"prompt": "2 + 2 ="}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = (f"input.path={tmp_path}/rows.jsonl", "--tokens-per-s", "356", "--json")
    assert json.loads(invoke(*given))["rows_per_s"] == pytest.approx(2)  # 100 and 256
    each = json.loads(invoke("generation.n=8", *given))["rows_per_s"]
    assert each == pytest.approx(2 / 8)


def test_a_speed_that_is_given_does_for_a_plan_that_has_none() -> None:
    tensor = ("parallel.strategy=tensor", "parallel.stages=1", "parallel.tensor=4")
    given = (*tensor, "parallel.options.backend=tensor_parallel", "--tokens-per-s", "2560")
    assert json.loads(invoke(*given, "--json"))["rows_per_s"] == 10
    with pytest.raises(UsageError, match="--tokens-per-s"):
        invoke(*given[:-2])


def test_an_input_without_rows_has_tokens(tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").touch()
    given = (f"input.path={tmp_path}/none.jsonl", "--tokens-per-s", "2560", "--json")
    assert json.loads(invoke(*given))["rows_per_s"] == 10


def test_a_script_is_refused() -> None:
    with pytest.raises(UsageError, match="rows of a script have no tokens"):
        invoke("--tokens-per-s", "2560", config=CONFIG.replace("llama2-70b-pipeline", "train-fsdp"))


def test_rows_that_are_scored_have_scored_tokens() -> None:
    shown = invoke("--worlds", "3", config=CONFIG.replace("llama2-70b-pipeline", "score"))
    assert "rows of 14 scored tokens" in shown


def test_a_folder_that_is_not_there_is_told_before_anything_is_measured() -> None:
    result = CliRunner().invoke(app, ["bench", "machine", "--dir", "/nonexistent"])
    assert isinstance(result.exception, UsageError)
    assert "--dir: there is no folder /nonexistent" in str(result.exception)


def test_what_is_assumed_is_printed() -> None:
    shown = invoke("--worlds", "3", "--tokens-per-s", "4000", "--mtbf-days", "7")
    assert "a node fails every 7 days" in shown
    assert "4,000 tokens/s (given)" in shown


def test_worlds_are_numbers() -> None:
    with pytest.raises(UsageError, match="numbers"):
        invoke("--worlds", "ten")
