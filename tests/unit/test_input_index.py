"""Which files are an input, and the index of their rows."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from prompt_files import body_row, index_of, lines, spec_of

from launcher.errors import Damaged, PreflightError, UsageError
from launcher.input.codes import CODES
from launcher.input.prompts import InputIndex, build_index, chunk_rows, scan
from launcher.records import Demand


@pytest.mark.parametrize(
    ("name", "content", "form"),
    [
        ("a.jsonl", lines({"prompt": "x"}), "jsonl"),
        ("a.ndjson", lines(b"broken", {"prompt": "x"}), "jsonl"),
        ("a.jsonl", lines(b"broken", body_row()), "openai"),
        ("a.txt", lines({"prompt": "x"}), "text"),
        ("a.unknown", lines({"prompt": "x"}), "jsonl"),
    ],
)
def test_auto_goes_by_extension_and_first_row(
    tmp_path: Path, name: str, content: bytes, form: str
) -> None:
    (tmp_path / name).write_bytes(content)
    build_index(spec_of(tmp_path / name), tmp_path / "index", 1)
    assert InputIndex(tmp_path / "index").meta.files[0].format == form


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl.gz", b"\x1f\x8b", "compressed"),
        ("a.json", b'[{"prompt": "x"}]', "jq"),
        ("a.dat", b"some text\n", "input.format"),
        ("a.jsonl", b"\n \n\xef\xbb\xbf\n"[:3], "no rows"),
        ("empty.jsonl", b"", "no rows"),
    ],
)
def test_what_is_no_input_is_refused_with_a_way_out(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError) as caught:
        build_index(spec_of(tmp_path / name), tmp_path / "index", 1)
    assert says in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for path, says in (
        (tmp_path / "pipe", "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
        (tmp_path / "folder", "is a directory"),
        (tmp_path / "missing.jsonl", "No such file"),
    ):
        with pytest.raises(UsageError, match=says):
            build_index(spec_of(path, "jsonl"), tmp_path / "index", 1)


def test_globs_are_sorted_lists_keep_their_order_and_a_file_counts_once(tmp_path: Path) -> None:
    for name in ("b", "a", "c", "[x]"):
        (tmp_path / f"{name}.jsonl").write_bytes(lines({"prompt": name}))
    (tmp_path / "also.jsonl").symlink_to(tmp_path / "a.jsonl")

    def prompts(path: str | list[str]) -> list[str]:
        build_index(spec_of(path), tmp_path / "index", 1)
        index = InputIndex(tmp_path / "index")
        return [index.request(i).prompt for i in range(len(index))]

    assert prompts(str(tmp_path / "[a-c].jsonl")) == ["a", "b", "c"]
    assert prompts([str(tmp_path / "c.jsonl"), str(tmp_path / "[ab].jsonl")]) == ["c", "a", "b"]
    assert prompts(str(tmp_path / "[x].jsonl")) == ["[x]"]
    with pytest.raises(UsageError, match="no file matches"):
        prompts(str(tmp_path / "*.nothing"))
    with pytest.raises(UsageError, match="same file twice"):
        prompts(str(tmp_path / "a*.jsonl"))


def test_an_input_edited_after_the_index_is_noticed_by_row(tmp_path: Path) -> None:
    index = index_of(tmp_path, b"\n" + lines({"prompt": "one"}, {"prompt": "two"}))
    file = tmp_path / "in.jsonl"
    file.write_bytes(file.read_bytes().replace(b"two", b"six"))
    assert index.request(0).prompt == "one"
    with pytest.raises(PreflightError) as caught:
        index.request(1)
    assert caught.value.where == f"{file}:3"
    file.write_bytes(b"short")
    with pytest.raises(PreflightError):
        index.request(0)
    file.unlink()
    with pytest.raises(PreflightError, match="No such file"):
        InputIndex(tmp_path / "index").request(0)


def test_an_index_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    index_of(tmp_path, lines({"prompt": "x"}))
    (tmp_path / "index" / "meta.json").unlink()
    with pytest.raises(UsageError, match="no index"):
        InputIndex(tmp_path / "index")


@pytest.mark.parametrize(
    ("rows", "writers", "expected"),
    [(1, 8, 1), (1000, 2, 31), (100_000, 2, 256), (1_000_000, 4, 256), (10_000_000, 4, 1221)],
)
def test_chunks_give_every_writer_work_and_stay_few(rows: int, writers: int, expected: int) -> None:
    assert chunk_rows(rows, writers) == expected
    assert -(-rows // expected) <= 8192


def test_chunks_cover_every_row_once(tmp_path: Path) -> None:
    index = index_of(tmp_path, lines(*({"prompt": "x"} for _ in range(100))))
    assert index.meta.chunk_rows == 6
    assert [row for chunk in range(index.chunks) for row in index.rows_of(chunk)] == list(
        range(100)
    )


def test_scan_is_exact_when_it_saw_everything_and_estimates_otherwise(tmp_path: Path) -> None:
    rows = [{"prompt": "x" * 90, "max_new_tokens": 1 + i % 7} for i in range(900)] + [
        {"prompt": "é" * 60}
    ] * 100
    (tmp_path / "a.jsonl").write_bytes(lines(*rows[:500]))
    (tmp_path / "b.jsonl").write_bytes(lines(*rows[500:]))
    spec = spec_of(str(tmp_path / "*.jsonl"), generation={"max_new_tokens": 3})
    exact = scan(spec, 1 << 20)
    assert exact == Demand(1000, 120, 7, exact=True)
    assert exact == build_index(spec, tmp_path / "index", 1)
    guess = scan(spec, 5000)
    assert not guess.exact
    assert 800 < guess.rows < 1200
    assert guess.longest_prompt_bytes == 90


def test_every_code_that_the_program_uses_is_in_the_list() -> None:
    folder = Path(__file__).parents[2] / "launcher" / "input"
    source = "".join(
        (folder / f"{name}.py").read_text() for name in ("rows", "messages", "openai", "indexer")
    )
    used = set(re.findall(r'(?:RowError|row_id|row\.id|str\(index\))[(,]\s*"(\w+)"', source))
    assert used >= {"duplicate_id", "line_too_long", "nul", "unsupported_option"}
    assert used <= CODES.keys()


@pytest.mark.parametrize("size", [1, 40, 1000])
def test_an_index_that_lost_rows_is_damaged(size: int, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(*({"prompt": "x"} for _ in range(3))))
    build_index(spec_of(tmp_path / "a.jsonl"), tmp_path / "index", 1)
    rows = tmp_path / "index" / "rows.bin"
    os.truncate(rows, size)
    with pytest.raises(Damaged, match="the index of 3 rows") as caught:
        InputIndex(tmp_path / "index")
    assert caught.value.where == str(rows)
