"""Whole runs: from a dataset saved on disk to Parquet, from an OpenAI batch file to its results, with several answers to a row."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from adder import is_right, prompt_rows
from jobs import launcher, read_rows, write_job


def test_from_a_dataset_to_parquet(tmp_path: Path) -> None:
    rows = [row for row in prompt_rows(30) if "prompt" in row]
    table = pa.table({"sum": [row["prompt"] for row in rows], "id": [row["id"] for row in rows]})
    data = tmp_path / "data"
    data.mkdir()
    with pa.OSFile(str(data / "a.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as w:
        w.write_table(table, max_chunksize=7)
    (data / "state.json").write_text(json.dumps({"_data_files": [{"filename": "a.arrow"}]}))
    given = {"path": "data", "columns": {"prompt": "sum"}}
    spec = write_job(tmp_path, 0, input=given, output={"format": "parquet"})
    shown = launcher("run", spec, "--run-dir", tmp_path / "run").stdout
    assert str(tmp_path / "run" / "outputs.parquet") in shown
    found = pq.read_table(tmp_path / "run" / "outputs.parquet").to_pylist()
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    assert sum(map(is_right, found)) >= len(rows) - 1
    assert {row.pop("logprobs") for row in found} == {None}  # no row asked for them
    assert {row.pop("choices") for row in found} == {None}
    assert found == read_rows(tmp_path / "run" / "outputs.jsonl")
    assert json.loads(launcher("verify", tmp_path / "run", "--json").stdout)["ok"]


def test_several_answers_to_a_row(tmp_path: Path) -> None:
    drawn = {"temperature": 9}  # the model is sure of its sums
    rows = [{"id": row["id"], "prompt": row["prompt"], **drawn} for row in prompt_rows(12) if "prompt" in row]
    rows[0] |= {"n": 1}
    spec = write_job(tmp_path, rows, generation={"n": 3}, output={"format": "parquet"})
    launcher("run", spec, "--run-dir", tmp_path / "run")
    found = read_rows(tmp_path / "run" / "outputs.jsonl")
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    assert "choices" not in found[0]
    for row in found[1:]:
        assert [choice["text"] for choice in row["choices"]][0] == row["text"]
        assert len(row["choices"]) == 3
        tokens = sum(choice["completion_tokens"] for choice in row["choices"])
        assert row["completion_tokens"] == tokens
    assert any(len({each["text"] for each in row["choices"]}) > 1 for row in found[1:])
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    made = 1 + 3 * (len(rows) - 1)
    assert plan["rows"] == len(rows)
    assert plan["predicted"]["new_tokens"] == pytest.approx(made * 8, rel=0.15)
    assert summary["tokens"]["completion"] == sum(row["completion_tokens"] for row in found)
    table = pq.read_table(tmp_path / "run" / "outputs.parquet").to_pylist()
    assert table[0]["choices"] is None
    texts = [[choice["text"] for choice in row["choices"]] for row in table[1:]]
    assert texts == [[choice["text"] for choice in row["choices"]] for row in found[1:]]


def test_from_a_batch_file_to_its_results(tmp_path: Path) -> None:
    def row(name: str, url: str, **body: object) -> dict[str, object]:
        return {"custom_id": name, "method": "POST", "url": url, "body": {"model": "m", **body}}

    asked = [
        row("echo", "/v1/completions", prompt="38+45=", echo=True),
        row("best", "/v1/chat/completions", messages=[{"role": "user", "content": "1+1="}], best_of=2),
        row("chat", "/v1/chat/completions", messages=[{"role": "user", "content": "38+45="}]),
        row("two", "/v1/completions", prompt="17+21=", n=2),
    ]
    spec = write_job(tmp_path, asked, output={"format": "openai"})
    launcher("run", spec, "--run-dir", tmp_path / "run", code=1)
    echo, chat, two = read_rows(tmp_path / "run" / "outputs.jsonl")
    assert [found["custom_id"] for found in (echo, chat, two)] == ["echo", "chat", "two"]
    assert echo["response"]["body"]["choices"][0]["text"] == "38+45=83"
    assert chat["response"]["body"]["choices"][0]["message"]["content"] == "83"
    (refused,) = read_rows(tmp_path / "run" / "errors.jsonl")
    assert refused["custom_id"] == "best"
    assert refused["response"]["status_code"] == 400
    answers = two["response"]["body"]["choices"]
    assert [(each["index"], each["text"]) for each in answers] == [(0, "38"), (1, "38")]
    assert "best_of" in refused["response"]["body"]["error"]["message"]
