"""Rows to score: read from every format, planned for, and written again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from launcher.errors import UsageError
from launcher.input.index import InputIndex
from launcher.input.prompts import build_index, scan
from launcher.input.results import decode_line, encode_line, read_head, result_row
from launcher.input.rows import parse_row
from launcher.job.spec import GenerationSpec, JobSpec
from launcher.ledger.table import write_table
from launcher.plan.plan import Plan
from launcher.prepare import plan_job
from launcher.records import Failure, Request, Sampling, Score

CONFIGS = Path(__file__).parents[2] / "configs"
CHAT = [{"role": "user", "content": "two"}]
ROWS: list[dict[str, Any]] = [
    {"id": "a", "prefix": "one", "continuations": ["1", "eins"]},
    {"id": "b", "messages": CHAT, "options": ["2"]},
    {"id": "c", "prompt": "", "continuations": ["é", "x"], "temperature": "not ours"},
]
REQUESTS = [
    Request(0, "a", Sampling(), "one", continuations=("1", "eins")),
    Request(1, "b", Sampling(), None, CHAT, continuations=("2",)),
    Request(2, "c", Sampling(), "", continuations=("é", "x")),
]
SCORE = Score(
    index=3,
    id="q",
    scores=[{"logprob": -1.5, "mean_logprob": -0.75, "tokens": [-0.5, -1.0], "token_ids": [7, 8]}],
    best=0,
    best_mean=0,
    prompt_tokens=4,
    completion_tokens=2,
)


def spec_of(path: Path, **more: Any) -> JobSpec:
    given = {"name": "t", "task": "score", "model": {"path": "m"}, "input": {"path": str(path)}}
    return JobSpec.model_validate({**given, **more})


def index_of(folder: Path, path: Path, **more: Any) -> InputIndex:
    build_index(spec_of(path, **more), folder / "index", 1)
    return InputIndex(folder / "index")


def test_rows_become_requests(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    index = index_of(tmp_path, path)
    assert [index.request(number) for number in range(3)] == REQUESTS


def test_a_table_has_the_same_rows(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    keys = ("id", "question", "messages", "continuations", "options")
    table = [{key: row.get(key) for key in keys} for row in ROWS]
    for row, given in zip(table, ROWS, strict=True):
        row["question"] = given.get("prefix", given.get("prompt"))
    pq.write_table(pa.Table.from_pylist(table), path)
    columns = {"prefix": "question"}
    index = index_of(tmp_path, path, input={"path": str(path), "columns": columns})
    assert [index.request(number) for number in range(3)] == REQUESTS


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({"prefix": "p"}, "no_continuations"),
        ({"prefix": "p", "options": []}, "no_continuations"),
        ({"prefix": "p", "options": "abc"}, "bad_continuations"),
        ({"prefix": "p", "options": ["a", 1]}, "bad_continuations"),
        ({"prefix": "p", "options": ["a", ""]}, "bad_continuations"),
        ({"prefix": "p", "options": ["a"], "continuations": ["b"]}, "bad_continuations"),
        ({"options": ["a"]}, "no_prompt"),
        ({"prefix": "p", "prompt": "p", "options": ["a"]}, "two_prompts"),
        ({"prefix": 5, "options": ["a"]}, "bad_prompt"),
        ({"messages": [], "options": ["a"]}, "bad_messages"),
        ({"prefix": "p", "options": ["\ud800"]}, "bad_unicode"),
        ({"prefix": "p", "options": ["a\0"]}, "nul"),
    ],
)
def test_rows_that_can_not_be_scored(row: dict[str, Any], code: str) -> None:
    found = parse_row(json.dumps(row).encode(), "jsonl", 0, GenerationSpec(), "score")
    assert isinstance(found, Failure)
    assert found.code == code


def test_rows_to_generate_keep_such_keys_to_themselves() -> None:
    row = {"prompt": "p", "options": "mine", "continuations": 1, "prefix": None}
    found = parse_row(json.dumps(row).encode(), "jsonl", 0, GenerationSpec())
    assert found == Request(0, "0", Sampling(), "p")


@pytest.mark.parametrize(
    ("name", "content", "more", "said"),
    [
        ("in.txt", "a line\n", {}, "a row of format text has no continuations"),
        (
            "in.jsonl",
            json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {}}),
            {},
            "a row of format openai has no continuations",
        ),
        ("in.jsonl", json.dumps(ROWS[0]), {"output": {"format": "openai"}}, "OpenAI"),
    ],
)
def test_formats_without_scores_are_refused(
    name: str, content: str, more: dict[str, Any], said: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=said):
        scan(spec_of(tmp_path / name, **more), 1 << 20)


def test_a_score_is_a_line_of_a_journal_and_a_row_of_a_table(tmp_path: Path) -> None:
    line = encode_line(SCORE)
    assert read_head(line) == (3, False)
    assert decode_line(line) == SCORE
    row = result_row(line, SCORE, "jsonl", {})
    assert list(json.loads(row))[:4] == ["index", "id", "scores", "best"]
    (tmp_path / "outputs.jsonl").write_bytes(row)
    write_table(tmp_path / "outputs.jsonl", tmp_path / "outputs.parquet", "score")
    assert pq.read_table(tmp_path / "outputs.parquet").to_pylist() == [json.loads(row)]


def plan(*overrides: str) -> Plan:
    return plan_job(
        CONFIGS / "score.yaml", overrides, here=True, say=lambda _: None, fetch=False
    ).plan


def test_the_plan_has_room_for_continuations_beside_each_other() -> None:
    longest = max(
        (json.loads(line) for line in (CONFIGS / "score/questions.jsonl").open()),
        key=lambda row: len(row["prefix"]) + sum(map(len, row["continuations"])),
    )
    demand = scan(spec_of(CONFIGS / "score/questions.jsonl"), 1 << 20)
    assert demand.max_new_tokens == sum(map(len, longest["continuations"]))
    assert demand.scored_bytes == pytest.approx(demand.max_new_tokens, rel=0.3)
    assert plan().batch.max_length >= len(longest["prefix"]) + demand.max_new_tokens


def test_the_plan_predicts_the_tokens_that_are_scored() -> None:
    made = plan()
    assert made.fits
    rows = len((CONFIGS / "score/questions.jsonl").read_text().splitlines())
    predicted = made.predicted
    assert predicted.tokens_per_s is not None and predicted.generate_s is not None
    # Four options of about three digits each.
    assert predicted.tokens_per_s * predicted.generate_s == pytest.approx(rows * 12, rel=0.2)
