"""Task `score` over real ranks, through the command line: the same log-probabilities under every strategy, those of
the whole model run over each continuation alone; and runs that are interrupted go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from adder import adder_path, question_rows
from gate import Gate
from jobs import PATIENCE_S, command, journaled, launcher, read_rows, wait_for, write_job

from launcher.engine.text import Text
from launcher.job.spec import ModelSpec
from launcher.model.weights import Loading, load_model

ROWS, MANY = 24, 200
BAD = {"id": "bad", "prefix": "1+1=", "continuations": []}
LONG = {"id": "long", "prompt": "1+" * 400, "options": ["2"]}
STRATEGIES: dict[str, dict[str, Any]] = {
    "replicas": {"parallel": {"replicas": 2}},
    "gpipe": {"parallel": {"strategy": "pipeline", "stages": 2, "schedule": "gpipe"}},
    "ring, tensor": {"parallel": {"strategy": "pipeline", "stages": 2, "tensor": 2}},
    "streamed": {
        "parallel": {"strategy": "streamed", "options": {"memory": "810MiB"}},
        "batch": {"groups": 2},
    },
}


def rows() -> list[dict[str, Any]]:
    """Questions, some of them with prefixes that others have; rows that fail among them."""
    found = question_rows(ROWS)
    for row in question_rows(ROWS)[::4]:
        found.append({"id": f"{row['id']} again", "prompt": row["prefix"], "options": ["1", "12"]})
    chat = [{"role": "user", "content": "12+30="}]
    found.append({"id": "chat", "messages": chat, "continuations": ["42", "24"]})
    return [*found[:3], BAD, LONG, *found[3:]]


@pytest.fixture(scope="module")
def expected() -> dict[str, list[float]]:
    """Sums of log-probabilities by id, each continuation run through the whole model."""
    torch.set_num_threads(1)
    spec = ModelSpec(path=str(adder_path()), dtype="float32")
    model, text = load_model(spec, Loading("float32")), Text.load(spec, max_length=512)
    found = {}
    for row in rows():
        if row in (BAD, LONG):
            continue
        given, special = (
            ("<s><|user|>12+30=\n<|assistant|>", False)
            if "messages" in row
            else (row.get("prefix") or row["prompt"], True)
        )
        if "messages" in row:
            given = text._tokenizer.apply_chat_template(
                row["messages"], tokenize=False, add_generation_prompt=True
            )
        prefix = text.tokens(given, special)
        sums = []
        for continuation in row.get("continuations") or row["options"]:
            tokens = text.tokens(given + continuation, special)
            assert tokens[: len(prefix)] == prefix
            with torch.inference_mode():
                logs = model(torch.tensor([tokens])).logits[0].log_softmax(dim=-1)
            places = range(len(prefix), len(tokens))
            sums.append(sum(float(logs[place - 1, tokens[place]]) for place in places))
        found[row["id"]] = sums
    return found


def check(run: Path, expected: dict[str, list[float]]) -> None:
    outputs = read_rows(run / "outputs.jsonl")
    assert [row["id"] for row in outputs] == list(expected), "in input order"
    for row in outputs:
        sums = [score["logprob"] for score in row["scores"]]
        assert sums == pytest.approx(expected[row["id"]], abs=1e-4)
        assert row["best"] == sums.index(max(sums))
        for score in row["scores"]:
            assert sum(score["tokens"]) == pytest.approx(score["logprob"], abs=1e-4)
    failed = {row["id"]: row["code"] for row in read_rows(run / "errors.jsonl")}
    assert failed == {"bad": "no_continuations", "long": "too_long"}


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_scores_alike(
    name: str, tmp_path: Path, expected: dict[str, list[float]]
) -> None:
    sections = {"batch": {"prefill_chunk": 20}, **STRATEGIES[name]}
    spec = write_job(tmp_path, rows(), task="score", **sections)
    done = launcher("run", spec, "--run-dir", tmp_path / "run", code=1)
    assert (tmp_path / "run" / "manifest.json").exists(), done.stderr
    check(tmp_path / "run", expected)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["rows"] == {"total": len(rows()), "ok": len(expected), "failed": 2}
    outputs = read_rows(tmp_path / "run" / "outputs.jsonl")
    for kind in ("prompt", "completion"):
        assert summary["tokens"][kind] == sum(row[f"{kind}_tokens"] for row in outputs)
    assert summary["rows_per_s"] > 0
    assert summary["tokens_per_s"] > summary["rows_per_s"]
    launcher("verify", tmp_path / "run")


def test_the_tiny_model_knows_the_answers_and_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    # Two ranks compute with a thread each: on cores that others use, threads of one rank wait for each other.
    spec = write_job(tmp_path, question_rows(MANY), task="score", parallel={"replicas": 2})
    running = subprocess.Popen(
        command("run", spec, "--run-dir", run, "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **Gate(tmp_path / "gate", 60).env},
    )
    wait_for(lambda: journaled(run) > 20)
    running.send_signal(signal.SIGINT)
    said, _ = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 130
    told = json.loads(said)
    assert (told["error"], told["where"], told["exit_code"]) == ("Interrupted", str(run), 130)
    assert told["fix"] == f"launcher resume {run}"
    assert 20 < journaled(run) < MANY
    assert " scored tokens in " in launcher("resume", run).stdout
    assert journaled(run) == MANY, "what was done was done again"
    outputs = read_rows(run / "outputs.jsonl")
    given = {row["id"]: row for row in question_rows(MANY)}
    right = [
        given[row["id"]]["continuations"][row["best"]] == row["id"].partition("=")[2]
        for row in outputs
    ]
    assert len(outputs) == MANY
    assert sum(right) > 0.95 * MANY
