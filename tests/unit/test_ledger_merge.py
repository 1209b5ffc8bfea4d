"""Merge, manifest, verify."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ledger_runs import FIRST, answer, fail, make_run, rows_in, write

from launcher import ledger
from launcher.errors import RunFailed
from launcher.input.results import encode_line
from launcher.records import Attempt
from launcher.report import facts
from launcher.run import Run, read_json
from launcher.runtime import coordinator


def finish(run: Run) -> ledger.Counts:
    counts = ledger.merge(run)
    assert counts is not None
    ledger.write_manifest(run, counts)
    return counts


def test_rows_of_many_journals_come_out_once_and_in_input_order(tmp_path: Path) -> None:
    rows = [{"id": f"r{i}", "prompt": "x"} for i in range(6)]
    rows[4] = {"id": "r4", "prompt": ""}
    run = make_run(tmp_path, rows)
    write(run, FIRST, 1, answer(5), answer(1))
    assert ledger.merge(run) is None
    assert not run.outputs.exists()
    write(run, Attempt(0, 2), 0, answer(1, "again"), fail(2), answer(0))
    write(run, Attempt(1, 1), 0, answer(3), answer(0, "again"))
    counts = finish(run)
    assert counts == ledger.Counts(total=6, ok=4, failed=2, prompt_tokens=8, completion_tokens=12)
    assert rows_in(run.outputs)[1] == {
        "index": 1,
        "id": "r1",
        "text": "text 1",
        "finish_reason": "stop",
        "prompt_tokens": 2,
        "completion_tokens": 3,
    }
    assert [row["index"] for row in rows_in(run.outputs)] == [0, 1, 3, 5]
    assert {row["text"].split()[0] for row in rows_in(run.outputs)} == {"text"}
    assert [(row["index"], row["id"], row["code"]) for row in rows_in(run.errors)] == [
        (2, "r2", "too_long"),
        (4, "r4", "no_prompt"),
    ]
    assert ledger.verify(run) == []
    manifest = read_json(run.manifest)
    assert manifest["rows"] == {"total": 6, "ok": 4, "failed": 2}
    assert len(manifest["input"][0]["sha256"]) == 64


def test_what_is_appended_after_a_merge_changes_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path, 2)
    write(run, Attempt(1, 1), 0, answer(0), answer(1))
    counts = finish(run)
    before = run.outputs.read_bytes()
    # Another world's rank finishes the same rows late, in a journal that is read first.
    write(run, Attempt(0, 1), 0, fail(0), answer(1, "late"))
    assert ledger.merge(run) == counts
    assert run.outputs.read_bytes() == before
    assert ledger.verify(run) == []


def test_a_merge_of_damaged_journals_says_so_and_asks_for_the_rows_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(tmp_path, 2)
    write(run, FIRST, 0, answer(0), answer(1))
    assert ledger.merge(run)
    path = run.journal(FIRST, 0)
    path.write_bytes(path.read_bytes().replace(b"text 0", b"texx 0"))
    with caplog.at_level("WARNING", logger="launcher"):
        assert ledger.merge(run) is None
    assert "damaged" in caplog.text
    write(run, Attempt(0, 2), 0, answer(0))
    assert ledger.merge(run)
    assert [row["text"] for row in rows_in(run.outputs)] == ["text 0", "text 1"]


def test_a_zombies_rows_are_not_merged(tmp_path: Path) -> None:
    run = make_run(tmp_path, 1)
    first = ledger.open_attempt(run, 0, {})
    second = ledger.open_attempt(run, 0, {})
    write(run, first, 0, answer(0, "zombie"))
    assert ledger.merge(run) is None
    write(run, second, 0, answer(0))
    assert ledger.merge(run)
    assert rows_in(run.outputs)[0]["text"] == "text 0"


def test_openai_results(tmp_path: Path) -> None:
    rows = [
        {"id": "r0", "prompt": "x"},
        {"id": "r1", "messages": [{"role": "user", "content": "x"}]},
        {},
    ]
    run = make_run(tmp_path, rows, output="openai")
    write(run, FIRST, 0, answer(1), answer(0))
    finish(run)
    text, chat = rows_in(run.outputs)
    assert (text["custom_id"], text["error"], text["response"]["status_code"]) == ("r0", None, 200)
    assert text["response"]["body"]["object"] == "text_completion"
    assert text["response"]["body"]["choices"] == [
        {"index": 0, "text": "text 0", "logprobs": None, "finish_reason": "stop"}
    ]
    body = chat["response"]["body"]
    assert (body["object"], body["model"]) == ("chat.completion", "m")
    assert body["choices"][0]["message"]["content"] == "text 1"
    assert body["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    (error,) = rows_in(run.errors)
    told = {
        "code": "no_prompt",
        "message": f"no prompt and no messages ({tmp_path / 'in.jsonl'}:3)",
    }
    assert (error["custom_id"], error["error"]) == ("2", told)
    assert error["response"] == {
        "status_code": 400,
        "request_id": "req_2",
        "body": {"error": {**told, "type": "invalid_request_error", "param": None}},
    }
    assert ledger.verify(run) == []
    before = run.outputs.read_bytes()
    assert ledger.merge(run)
    assert run.outputs.read_bytes() == before


def test_errors_say_where_the_row_is_whenever_it_failed(tmp_path: Path) -> None:
    run = make_run(tmp_path, [{"id": "r0", "prompt": "x"}, {}])
    write(run, FIRST, 0, fail(0))
    finish(run)
    late, early = rows_in(run.errors)
    path = str(tmp_path / "in.jsonl")
    assert late == {**vars(fail(0)), "file": path, "line": 1}
    assert (early["code"], early["file"], early["line"]) == ("no_prompt", path, 2)
    assert ledger.verify(run) == []


def test_more_journals_than_may_be_open_at_once(tmp_path: Path) -> None:
    run = make_run(tmp_path, 300)
    for row in range(300):
        run.journal(FIRST, row).write_bytes(encode_line(answer(row)))
    assert ledger.merge(run)
    assert [row["index"] for row in rows_in(run.outputs)] == list(range(300))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda rows: rows[:2] + rows[3:], "row 2 is missing before outputs.jsonl:3"),
        (lambda rows: rows[:5], "row 5 is missing at the end"),
        (
            lambda rows: [*rows[:2], rows[1], *rows[2:]],
            "outputs.jsonl:3: row 1 is out of order or there twice",
        ),
        (lambda rows: [rows[1], rows[0], *rows[2:]], "out of order"),
        (lambda rows: [*rows, {**rows[0], "index": 9}], "the input has no row 9"),
        (
            lambda rows: [{**rows[0], "id": "other"}, *rows[1:]],
            "row 0 has an id that is not the input's",
        ),
        (lambda rows: [{"text": "x"}, *rows[1:]], "outputs.jsonl:1 is not a result"),
    ],
)
def test_verify_names_what_is_wrong(tmp_path: Path, spoil: object, says: str) -> None:
    run = make_run(tmp_path, 6)
    write(run, FIRST, 0, *(answer(row) for row in range(6)))
    counts = finish(run)
    spoiled = spoil(rows_in(run.outputs))  # type: ignore[operator]
    run.outputs.write_text("".join(json.dumps(row) + "\n" for row in spoiled))
    problems = ledger.verify(run)
    assert "outputs.jsonl is not the file that the manifest names" in problems
    assert any(says in problem for problem in problems), problems
    ledger.write_manifest(run, counts)
    assert any(says in problem for problem in ledger.verify(run))


@pytest.mark.parametrize(
    ("told", "says"),
    [("{}", "input, rows, sha256, tokens"), ('{"rows": 7}', "rows"), ("[]", "not"), ("{", "not")],
)
def test_a_manifest_that_is_none_is_a_problem(tmp_path: Path, told: str, says: str) -> None:
    run = make_run(tmp_path, 1)
    write(run, FIRST, 0, answer(0))
    finish(run)
    run.manifest.write_text(told)
    (problem,) = ledger.verify(run)
    assert str(run.manifest) in problem and says in problem


@pytest.mark.parametrize(
    "line", [b"\0" * 100, b"[" * 100_000, b'{"index": Infinity, "id": ""}', b"\xff"]
)
def test_lines_that_are_no_rows_are_told(tmp_path: Path, line: bytes) -> None:
    run = make_run(tmp_path, 2)
    write(run, FIRST, 0, answer(0), fail(1))
    finish(run)
    run.errors.write_bytes(run.errors.read_bytes() + line)
    assert "errors.jsonl:2 is not a result" in ledger.verify(run)
    found = facts.row_errors(run)
    assert found["shown"][0]["id"] == "r1" and found["read"] == 2


def test_verify_of_a_run_that_is_not_complete(tmp_path: Path) -> None:
    run = make_run(tmp_path, 50)
    write(run, FIRST, 1, answer(0))
    assert ledger.verify(run) == ["the run is not complete: 49 of its rows are still to be done"]
    write(run, FIRST, 0, *(answer(row) for row in range(50)))
    assert ledger.verify(run) == ["the run is not complete: its results are not gathered yet"]
    finish(run)
    run.outputs.write_text("x\n" * 50)
    assert len(ledger.verify(run)) == 20
    run.errors.unlink()
    assert ledger.verify(run) == ["errors.jsonl is missing; launcher resume gathers it again"]


def test_results_of_a_complete_run_are_gathered_again_or_it_says_what_is_missing(
    tmp_path: Path,
) -> None:
    run = make_run(tmp_path, 5, output="parquet")
    write(run, FIRST, 0, *(answer(row) for row in range(4)), fail(4))
    finish(run)
    run.summary.write_text("{}")
    kept = {path: path.read_bytes() for path in ledger.results(run)}
    assert len(kept) == 3
    for path, content in kept.items():
        path.unlink()
        coordinator.restore(run)
        assert path.read_bytes() == content
    assert not ledger.verify(run)
    # Results that another version of a library wrote differ in bytes, and are written again with the lost ones.
    run.manifest.write_text(
        run.manifest.read_text().replace('"outputs.jsonl": "', '"outputs.jsonl": "0')
    )
    assert ledger.verify(run)
    run.errors.unlink()
    coordinator.restore(run)
    assert not ledger.verify(run)
    run.errors.unlink()
    run.journal(FIRST, 0).write_bytes(b"")
    with pytest.raises(RunFailed, match=r"errors.jsonl can't be gathered again: 5 rows") as caught:
        coordinator.restore(run)
    assert "manifest.json" in str(caught.value.fix)


def test_a_merge_that_can_not_write_says_where(tmp_path: Path) -> None:
    run = make_run(tmp_path, 1)
    write(run, FIRST, 0, answer(0))
    run.outputs.mkdir()
    (run.outputs / "in the way").touch()
    with pytest.raises(RunFailed, match="cannot merge") as caught:
        ledger.merge(run)
    assert caught.value.where == str(run.path)
