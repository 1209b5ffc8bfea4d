"""Parquet and Arrow files, and datasets saved on disk, as input; Parquet as output."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ledger_runs import FIRST, answer, make_run, write

from launcher import ledger
from launcher.errors import PreflightError, UsageError
from launcher.input.prompts import InputIndex, build_index, scan
from launcher.job.spec import JobSpec
from launcher.records import Demand, Failure, Request, Sampling

CHAT = [{"role": "user", "content": "two"}]


def spec_of(path: Path | list[str], **given: Any) -> JobSpec:
    asked = {"path": path if isinstance(path, list) else str(path), **given}
    return JobSpec.model_validate({"name": "t", "model": {"path": "m"}, "input": asked})


def index_of(folder: Path, path: Path | list[str], **given: Any) -> InputIndex:
    build_index(spec_of(path, **given), folder / "index", 1)
    return InputIndex(folder / "index")


def save_dataset(folder: Path, *tables: pa.Table, **state: Any) -> Path:
    """A folder as `datasets.Dataset.save_to_disk` leaves it."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{len(tables):05d}.arrow" for i in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        with (
            pa.OSFile(str(folder / name), "wb") as file,
            pa.ipc.new_stream(file, table.schema) as w,
        ):
            w.write_table(table)
    known = {"_data_files": [{"filename": name} for name in names], "_split": None, **state}
    (folder / "state.json").write_text(json.dumps(known))
    return folder


def write_table(path: Path, table: pa.Table) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=2)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    return path


@pytest.mark.parametrize("name", ["in.parquet", "in.arrow", "in.feather"])
def test_rows_of_a_table_are_those_of_jsonl(tmp_path: Path, name: str) -> None:
    rows = [
        {"id": "a", "prompt": "one", "temperature": 0.5, "vector": b"\0\1"},
        {"id": "b", "messages": CHAT, "max_new_tokens": 3, "stop": ["x"]},
        {"id": "c", "prompt": "drei é\n\u2028", "seed": 2**62},
        {"id": "a", "prompt": "again"},
        {"id": "e"},
    ]
    index = index_of(tmp_path, write_table(tmp_path / name, pa.Table.from_pylist(_even(rows))))
    assert index.request(0) == Request(0, "a", Sampling(temperature=0.5), "one")
    assert index.request(1) == Request(1, "b", Sampling(3, seed=1, stop=("x",)), None, CHAT)
    assert index.request(2) == Request(2, "c", Sampling(seed=2**62), "drei é\n\u2028")
    twice, empty = index.request(3), index.request(4)
    assert isinstance(twice, Failure) and twice.code == "duplicate_id"
    assert f"{tmp_path / name}:1 already" in twice.message
    assert index.place(3) == (str(tmp_path / name), 4)
    assert isinstance(empty, Failure) and (empty.id, empty.code) == ("e", "no_prompt")
    assert index.meta.files[0].path == str(tmp_path / name)


def _even(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All keys in every row: pyarrow takes a table's columns from its first row."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return [{key: row.get(key) for key in keys} for row in rows]


def test_the_index_is_read_without_pyarrow_and_without_the_table(tmp_path: Path) -> None:
    file = write_table(tmp_path / "in.parquet", pa.table({"prompt": ["x", "y"]}))
    index_of(tmp_path, file).close()
    file.unlink()
    program = (
        "import sys, pathlib\n"
        "sys.modules['pyarrow'] = None\n"
        "from launcher.input.prompts import InputIndex\n"
        "print(InputIndex(pathlib.Path(sys.argv[1])).request(1).prompt)\n"
    )
    argv = [sys.executable, "-c", program, str(tmp_path / "index")]
    assert subprocess.check_output(argv, text=True).strip() == "y"


def test_a_row_that_was_damaged_after_it_was_indexed_is_noticed(tmp_path: Path) -> None:
    index = index_of(tmp_path, write_table(tmp_path / "in.parquet", pa.table({"prompt": ["xyz"]})))
    copy = tmp_path / "index" / "rows-0000.jsonl"
    copy.write_bytes(copy.read_bytes().replace(b"xyz", b"xyy"))
    with pytest.raises(PreflightError, match="not what it was"):
        index.request(0)


def test_columns_of_other_names_and_types(tmp_path: Path) -> None:
    table = pa.table(
        {
            "question": pa.array(["a", "b"]).dictionary_encode(),
            "number": pa.array([7, 8], pa.uint64()),
            "prompt": ["not", "this"],
            "when": pa.array([0, 1], pa.timestamp("s")),
        }
    )
    file = write_table(tmp_path / "in.parquet", table)
    index = index_of(tmp_path, file, columns={"prompt": "question", "id": "number"})
    assert index.request(1) == Request(1, "8", Sampling(seed=1), "b")
    for columns, says in (
        ({"prompt": "answer"}, "question, number"),
        ({"prompt": "when"}, "timestamp"),
        ({"promt": "question"}, "promt"),
    ):
        with pytest.raises(UsageError, match=says):
            build_index(spec_of(file, columns=columns), tmp_path / "no", 1)
    (tmp_path / "in.jsonl").write_text('{"prompt": "x"}\n')
    with pytest.raises(UsageError, match=r"input\.columns"):
        scan(spec_of(tmp_path / "in.jsonl", columns={"prompt": "question"}), 1 << 20)


def test_nulls_within_messages_are_left_out(tmp_path: Path) -> None:
    call = {"function": {"name": "add", "arguments": '{"a": 1}'}}
    chat = [
        {"role": "user", "content": "x", "tool_calls": None},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    table = pa.Table.from_pylist([{"messages": chat}])
    row = index_of(tmp_path, write_table(tmp_path / "in.parquet", table)).request(0)
    assert isinstance(row, Request) and row.messages
    assert row.messages[0] == {"role": "user", "content": "x"}
    assert row.messages[1]["tool_calls"][0]["function"]["arguments"] == {"a": 1}


def test_text_that_is_no_utf8_fails_its_row_alone(tmp_path: Path) -> None:
    spoilt = pa.array([b"good", b"\xe9", b"fine"]).view(pa.string())
    index = index_of(tmp_path, write_table(tmp_path / "in.arrow", pa.table({"prompt": spoilt})))
    rows = [index.request(i) for i in range(3)]
    assert [getattr(row, "code", None) for row in rows] == [None, "bad_utf8", None]


def test_a_saved_dataset_and_its_splits(tmp_path: Path) -> None:
    first, second = pa.table({"prompt": ["a", "b"]}), pa.table({"prompt": ["c"]})
    save_dataset(tmp_path / "data" / "train", first, second)
    (tmp_path / "data" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    index = index_of(tmp_path, tmp_path / "data" / "train")
    rows = [index.request(i) for i in range(3)]
    assert [row.prompt for row in rows if isinstance(row, Request)] == ["a", "b", "c"]
    with pytest.raises(UsageError, match="splits: train") as caught:
        scan(spec_of(tmp_path / "data"), 1)
    assert str(tmp_path / "data" / "train") in str(caught.value.fix)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"_data_files": [{"filename": "../../other.arrow"}]}, "outside its folder"),
        ({"_data_files": []}, "no file"),
        ({"_data_files": None}, "not the state"),
        ({"_indices_data_files": [{"filename": "indices.arrow"}]}, "flatten_indices"),
    ],
)
def test_a_dataset_that_is_not_what_it_should_be(
    tmp_path: Path, state: dict[str, Any], says: str
) -> None:
    folder = save_dataset(tmp_path / "data", pa.table({"prompt": ["a"]}), **state)
    with pytest.raises(UsageError) as caught:
        scan(spec_of(folder), 1)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"), [("a.parquet", b"PAR1 and no more"), ("a.arrow", b"ARROW1"), ("b.pq", b"")]
)
def test_a_broken_table_is_told_with_its_name(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    for look in (scan, build_index):
        with pytest.raises(UsageError, match=name):
            look(spec_of(tmp_path / name), *([1] if look is scan else [tmp_path / "i", 1]))


def test_a_table_and_lines_in_one_input(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "one"}\n')
    write_table(tmp_path / "b.parquet", pa.table({"prompt": ["two", "three"]}))
    paths = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.parquet")]
    assert scan(spec_of(paths), 1 << 20) == Demand(3, 5, 256, exact=True)
    assert scan(spec_of(paths), 1) == Demand(3, 3, 256, exact=False)
    assert len(index_of(tmp_path, paths)) == 3


def test_without_pyarrow_the_command_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_table(tmp_path / "in.parquet", pa.table({"prompt": ["x"]}))
    lines = tmp_path / "in.jsonl"
    lines.write_text('{"prompt": "x"}\n')
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    wants_table = spec_of(lines).model_copy(
        update={"output": spec_of(lines).output.model_copy(update={"format": "parquet"})}
    )
    for spec in (spec_of(file), wants_table):
        with pytest.raises(PreflightError, match="pip install pyarrow"):
            scan(spec, 1 << 20)


def test_a_large_row_group_takes_little_memory(tmp_path: Path) -> None:
    rows = 200_000
    table = pa.table({"prompt": pa.array([f"{i} " + "word " * 100 for i in range(rows)])})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=rows, use_dictionary=False)
    program = (
        "import resource, sys\n"
        "from launcher.input import columnar\n"
        "from pathlib import Path\n"
        "columnar.require_pyarrow('test')\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "size = sum(len(row) for row in columnar.rows(Path(sys.argv[1]), 'parquet', {}))\n"
        "print(size >> 20, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before >> 10)\n"
    )
    argv = [sys.executable, "-c", program, str(tmp_path / "in.parquet")]
    size, took = map(int, subprocess.check_output(argv, text=True).split())
    assert size > 95
    assert took < 90


def test_parquet_output_is_the_outputs_once_more(tmp_path: Path) -> None:
    run = make_run(
        tmp_path, [{"id": f"r{i}", "prompt": "x"} for i in range(3)] + [{}], 1, "parquet"
    )
    write(run, FIRST, 0, answer(2), answer(0), answer(1))
    counts = ledger.merge(run)
    assert counts is not None and counts.ok == 3
    ledger.write_manifest(run, counts)
    table = pq.read_table(run.table)
    rows = [json.loads(line) for line in run.outputs.open()]
    assert table.to_pylist() == [row | {"logprobs": None, "choices": None} for row in rows]
    assert table["text"].to_pylist() == ["text 0", "text 1", "text 2"]
    assert ledger.verify(run) == []
    first = run.table.read_bytes()
    assert ledger.merge(run) and run.table.read_bytes() == first
    run.table.write_bytes(first[:-1])
    assert ledger.verify(run) == ["outputs.parquet is not the file that the manifest names"]
