"""Rows of an input: what becomes a request, and what a failure that says why."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from prompt_files import index_of, lines, spec_of

from launcher.input.prompts import InputIndex, build_index
from launcher.records import Failure, Request, Sampling


def test_jsonl_rows_become_requests_with_the_specs_settings_unless_they_have_their_own(
    tmp_path: Path,
) -> None:
    index = index_of(
        tmp_path,
        lines(
            {"id": "a", "prompt": "one", "note": "kept by the user"},
            {"id": 7, "messages": [{"role": "user", "content": "two"}], "top_k": 5, "seed": 3},
            {"prompt": "three", "temperature": 0.5, "stop": "x", "max_new_tokens": None},
        ),
        generation={"max_new_tokens": 9, "seed": 40},
    )
    assert [index.request(i) for i in range(3)] == [
        Request(0, "a", Sampling(9, seed=40), prompt="one"),
        Request(
            1, "7", Sampling(9, top_k=5, seed=3), messages=[{"role": "user", "content": "two"}]
        ),
        Request(2, "2", Sampling(9, temperature=0.5, seed=42, stop=("x",)), prompt="three"),
    ]


def test_text_parts_of_a_message_are_joined_and_other_keys_of_it_stay(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    index = index_of(
        tmp_path, lines({"messages": [{"role": "user", "name": "n", "content": parts}]})
    )
    request = index.request(0)
    assert isinstance(request, Request)
    assert request.messages == [{"role": "user", "name": "n", "content": "a\nb"}]


def test_text_format_is_a_line_a_prompt(tmp_path: Path) -> None:
    index = index_of(tmp_path, b"first \\u0041\r\n\n  \nsecond\xe2\x80\xa8x", "text")
    assert [index.request(i).prompt for i in range(2)] == ["first \\u0041", "second\u2028x"]


def test_lines_end_with_newline_bytes_alone(tmp_path: Path) -> None:
    prompts = ["a\u2028b\u0085c", "d\re", "\ufefff"]
    content = b"".join(
        json.dumps({"prompt": p}, ensure_ascii=False).encode() + b"\n" for p in prompts
    )
    index = index_of(tmp_path, b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n\n \t\n"))
    assert [index.request(i).prompt for i in range(len(index))] == prompts
    assert [index.entry(i).line for i in range(3)] == [1, 4, 7]


def test_a_raw_carriage_return_is_not_a_line_end(tmp_path: Path) -> None:
    index = index_of(tmp_path, b'{"prompt":\r"a"}\n{"prompt": "b"}')
    assert [index.request(i).prompt for i in range(len(index))] == ["a", "b"]


BAD_ROWS: list[tuple[bytes, str, str]] = [
    (b'{"prompt": "\xff"}', "bad_utf8", "byte 12"),
    (b'{"prompt": "\xed\xa0\x80"}', "bad_utf8", ""),
    (b'{"prompt": "a\0b"}', "nul", "byte 13"),
    (rb'{"prompt": "a\u0000b"}', "nul", ""),
    (b'{"prompt": ', "not_json", "character"),
    (b'{"prompt": "x"} {}', "not_json", ""),
    (b'{"prompt": "x", "note": NaN}', "not_json", "NaN"),
    (b'{"prompt": "x", "prompt": "y"}', "not_json", '"prompt" is there twice'),
    (b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", "not_json", "4300"),
    (b'{"prompt": "x", "a": ' + b"[" * 100_000, "not_json", "deep"),
    (b'["prompt"]', "not_an_object", ""),
    (b"17", "not_an_object", ""),
    (b'{"text": "x"}', "no_prompt", ""),
    (b'{"prompt": ""}', "no_prompt", "empty"),
    (b'{"prompt": 5}', "bad_prompt", "5"),
    (b'{"prompt": "x", "messages": []}', "two_prompts", ""),
    (b'{"messages": []}', "bad_messages", ""),
    (b'{"messages": "hi"}', "bad_messages", ""),
    (b'{"messages": [5]}', "bad_messages", "messages[0]"),
    (b'{"messages": [{"content": "x"}]}', "bad_messages", "role"),
    (
        b'{"messages": [{"role": "user", "content": "x"}, {"role": "user"}]}',
        "bad_messages",
        "messages[1]",
    ),
    (
        b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}',
        "bad_messages",
        "image",
    ),
    (b'{"prompt": "x", "temperature": -1}', "bad_sampling", "temperature"),
    (b'{"prompt": "x", "temperature": 1e999}', "bad_sampling", "temperature"),
    (b'{"prompt": "x", "temperature": "1"}', "bad_sampling", "temperature"),
    (b'{"prompt": "x", "top_p": 0}', "bad_sampling", "top_p"),
    (b'{"prompt": "x", "top_k": true}', "bad_sampling", "top_k"),
    (b'{"prompt": "x", "seed": 9223372036854775808}', "bad_sampling", "seed"),
    (b'{"prompt": "x", "max_new_tokens": 0}', "bad_sampling", "max_new_tokens"),
    (b'{"prompt": "x", "max_new_tokens": 2000000000}', "bad_sampling", "1048576"),
    (b'{"prompt": "x", "stop": [1]}', "bad_sampling", "stop"),
    (b'{"prompt": "x", "stop": 1}', "bad_sampling", "stop"),
    (b'{"prompt": "x", "stop": ""}', "bad_sampling", "stop"),
    (b'{"prompt": "x", "id": 1.5}', "bad_id", "1.5"),
    (b'{"prompt": "x", "id": true}', "bad_id", ""),
    (b'{"prompt": "x", "id": ""}', "bad_id", ""),
    (b'{"prompt": "x", "id": "' + b"i" * 1025 + b'"}', "bad_id", "1025"),
    (rb'{"prompt": "x", "id": "\ud800"}', "bad_unicode", ""),
    (rb'{"prompt": "\udc00 x"}', "bad_unicode", ""),
    (rb'{"messages": [{"role": "user", "content": "\uD83D"}]}', "bad_unicode", ""),
]


@pytest.mark.parametrize(
    ("row", "code", "says"), BAD_ROWS, ids=[f"{i}-{c}" for i, (_, c, _) in enumerate(BAD_ROWS)]
)
def test_a_bad_row_is_one_failure_and_its_neighbours_are_answered(
    tmp_path: Path, row: bytes, code: str, says: str
) -> None:
    index = index_of(tmp_path, lines({"prompt": "before"}, row, {"prompt": "after"}))
    before, failure, after = (index.request(i) for i in range(3))
    assert isinstance(failure, Failure), failure
    assert (failure.index, failure.code) == (1, code)
    assert says in failure.message
    assert failure.message.isprintable()
    assert isinstance(before, Request)
    assert isinstance(after, Request)
    assert index.meta.bad_rows == 1


def test_a_prompt_that_spells_an_escape_is_not_one(tmp_path: Path) -> None:
    row = {"prompt": r"the escape \u0000 and \ud800 as text", "é": "\u0000 in what nobody reads"}
    assert isinstance(index_of(tmp_path, lines(row)).request(0), Request)


def test_a_failed_row_keeps_its_own_id(tmp_path: Path) -> None:
    index = index_of(tmp_path, lines({"id": "mine"}, {"id": "later", "prompt": "x"}))
    assert index.request(0) == Failure(0, "mine", "no_prompt", "no prompt and no messages")


def test_all_rows_of_one_id_but_the_first_fail_and_say_where_that_is(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "prompt": "1"},
        {"id": "b", "prompt": "2"},
        {"id": "a", "prompt": "3"},
        {"id": "a"},
    ]
    (tmp_path / "one.jsonl").write_bytes(b"\n" + lines(*rows))
    (tmp_path / "two.jsonl").write_bytes(
        lines({"prompt": "implicit id 4"}, {"id": "a", "prompt": "5"}, {"id": "4", "prompt": "6"})
    )
    (tmp_path / "z.jsonl").write_bytes(lines({"id": "8", "prompt": "7"}, {"prompt": "id 8"}))
    build_index(spec_of(str(tmp_path / "*.jsonl")), tmp_path / "index", 1)
    index = InputIndex(tmp_path / "index")
    found = [index.request(i) for i in range(len(index))]
    codes = [row.code if isinstance(row, Failure) else "" for row in found]
    assert codes[:4] == ["", "", "duplicate_id", "no_prompt"]
    assert codes[4:] == ["", "duplicate_id", "duplicate_id", "", "duplicate_id"]
    one, two, z = (f"{tmp_path}/{name}.jsonl" for name in ("one", "two", "z"))
    assert [found[i].message for i in (5, 6, 8)] == [
        f'the id "a" is that of {one}:2 already',
        f"{two}:1 has no id, so its number 4 is its id, which this row has too",
        f"the row has no id, so its number 8 is its id: {z}:1 has that already",
    ]
    assert found[5].id == "a"
    assert [index.place(i) for i in (5, 6, 8)] == [(two, 2), (two, 3), (z, 2)]
    assert index.meta.bad_rows == 5


def test_a_line_of_64_megabytes_fails_alone_in_little_memory(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    with file.open("wb") as out:
        out.write(lines({"prompt": "before"}) + b'{"prompt": "')
        for _ in range(64):
            out.write(b"x" * (1 << 20))
        out.write(b'"}\n' + lines({"prompt": "after"}))
    program = (
        "import sys; from pathlib import Path; from launcher.job.spec import JobSpec\n"
        "from launcher.input.prompts import InputIndex, build_index\n"
        "spec = JobSpec(name='t', model={'path': 'm'}, input={'path': sys.argv[1]})\n"
        "print(build_index(spec, Path(sys.argv[2]), 1).longest_prompt_bytes)\n"
        "print([l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')][0])\n"
        "print(InputIndex(Path(sys.argv[2])).request(1).code)\n"
        "print(InputIndex(Path(sys.argv[2])).request(2).prompt)\n"
    )
    argv = [sys.executable, "-c", program, str(file), str(tmp_path / "index")]
    longest, peak_kib, code, after = subprocess.check_output(argv, text=True).split()
    assert (longest, code, after) == ("6", "line_too_long", "after")
    assert int(peak_kib) < 200 << 10
