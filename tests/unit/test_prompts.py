"""The input: found, cut into rows, checked row by row, indexed, read back."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import PreflightError, UsageError
from launcher.input.codes import CODES
from launcher.input.prompts import InputIndex, build_index, chunk_rows, scan
from launcher.job.spec import JobSpec
from launcher.records import Demand, Failure, Request, Sampling


def spec_of(path: Path | str | list[str], form: str = "auto", **more: Any) -> JobSpec:
    path = str(path) if isinstance(path, Path) else path
    given = {"path": path, "format": form}
    return JobSpec.model_validate({"name": "t", "model": {"path": "m"}, "input": given, **more})


def index_of(tmp_path: Path, content: bytes, form: str = "jsonl", **more: Any) -> InputIndex:
    """The index of one file with ``content``."""
    tmp_path.mkdir(exist_ok=True)
    file = tmp_path / "in.jsonl"
    file.write_bytes(content)
    build_index(spec_of(file, form, **more), tmp_path / "index", writers=1)
    return InputIndex(tmp_path / "index")


def lines(*rows: Any) -> bytes:
    return b"".join(
        (row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows
    )


def body_row(url: str = "/v1/chat/completions", **body: Any) -> dict[str, Any]:
    if "chat" in url:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **body}
    else:
        body = {"model": "m", "prompt": "hi", **body}
    return {"custom_id": "a", "method": "POST", "url": url, "body": body}


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


def test_all_rows_of_one_id_but_the_first_fail_and_both_lines_are_named(tmp_path: Path) -> None:
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
    build_index(spec_of(str(tmp_path / "*.jsonl")), tmp_path / "index", 1)
    index = InputIndex(tmp_path / "index")
    found = [index.request(i) for i in range(len(index))]
    codes = [row.code if isinstance(row, Failure) else "" for row in found]
    assert codes == ["", "", "duplicate_id", "no_prompt", "", "duplicate_id", "duplicate_id"]
    assert f"{tmp_path}/one.jsonl:2 already" in found[5].message
    assert f"{tmp_path}/two.jsonl:2" in found[5].message
    assert found[5].id == "a"
    assert index.meta.bad_rows == 4


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


def test_openai_batch_rows(tmp_path: Path) -> None:
    chat = body_row(
        max_completion_tokens=5,
        temperature=0.5,
        top_p=0.9,
        seed=1,
        stop=["x"],
        user="u",
        n=1,
        logprobs=False,
    )
    text = {
        **body_row("/v1/completions", prompt=["hi"], max_tokens=6, logit_bias={}),
        "custom_id": "b",
    }
    index = index_of(tmp_path, lines(chat, text), "auto")
    assert index.request(0) == Request(
        0, "a", Sampling(5, 0.5, 0.9, 0, 1, ("x",)), messages=[{"role": "user", "content": "hi"}]
    )
    assert index.request(1) == Request(1, "b", Sampling(6, seed=1), prompt="hi")


def test_biases_of_a_row_and_of_the_spec(tmp_path: Path) -> None:
    rows = lines(
        body_row(presence_penalty=-2, frequency_penalty=0.5, logit_bias={"5": 1, "7": -99.5}),
        {**body_row(logit_bias=None, presence_penalty=None), "custom_id": "b"},
    )
    index = index_of(tmp_path, rows, "openai", generation={"logit_bias": {"9": 3}})
    found = [index.request(row) for row in (0, 1)]
    assert [row.sampling for row in found if isinstance(row, Request)] == [
        Sampling(
            presence_penalty=-2, frequency_penalty=0.5, logit_bias=((5, 1), (7, -99.5)), seed=0
        ),
        Sampling(logit_bias=((9, 3),), seed=1),
    ]


@pytest.mark.parametrize(
    ("row", "code", "says"),
    [
        (body_row(n=2), "unsupported_option", "n = 2 is not supported: a row has one answer"),
        (body_row(tools=[{"type": "function"}]), "bad_tools", "tools[0]"),
        (body_row(tools={"type": "function"}), "bad_tools", "list"),
        (body_row(tool_choice="required"), "unsupported_option", "tool_choice"),
        (body_row(logit_bias={"5": 101}), "bad_sampling", "logit_bias.5"),
        (body_row(logit_bias={"5": True}), "bad_sampling", "logit_bias.5"),
        (body_row(logit_bias={"five": 1}), "bad_sampling", "logit_bias.five"),
        (body_row(logit_bias=[5]), "bad_sampling", "logit_bias"),
        (body_row(logit_bias={str(n): 1 for n in range(1025)}), "bad_sampling", "1024 items"),
        (body_row(echo=True), "unsupported_option", "echo"),
        (body_row("/v1/completions", echo="yes"), "bad_echo", "yes"),
        (body_row("/v1/completions", best_of=3), "unsupported_option", "best_of"),
        (
            body_row(messages=[{"role": "assistant", "content": None, "tool_calls": "x"}]),
            "bad_messages",
            "tool_calls",
        ),
        (body_row(logprobs=1), "bad_sampling", "logprobs"),
        (body_row(top_logprobs=2), "bad_sampling", "needs logprobs"),
        (body_row(logprobs=True, top_logprobs=21), "bad_sampling", "top_logprobs"),
        (body_row("/v1/completions", logprobs=True), "bad_sampling", "logprobs"),
        (body_row("/v1/completions", logprobs=1, echo=True), "unsupported_option", "task score"),
        (body_row(presence_penalty=2.5), "bad_sampling", "presence_penalty"),
        (body_row(frequency_penalty="1"), "bad_sampling", "frequency_penalty"),
        (
            body_row(response_format={"type": "json_object"}),
            "unsupported_option",
            "response_format",
        ),
        (body_row(invented=1), "unsupported_option", "invented"),
        (body_row(prompt="x"), "unsupported_option", "prompt"),
        (body_row(max_tokens=1, max_completion_tokens=2), "bad_sampling", "max_completion_tokens"),
        (body_row(temperature=-1), "bad_sampling", "temperature"),
        (body_row(messages=None), "no_prompt", ""),
        (body_row("/v1/completions", prompt=["a", "b"]), "bad_prompt", ""),
        (body_row("/v1/completions", prompt=[1, 2]), "bad_prompt", ""),
        (body_row("/v1/embeddings"), "unsupported_url", "embeddings"),
        ({**body_row(), "method": "GET"}, "bad_batch_row", "GET"),
        ({**body_row(), "body": "x"}, "bad_batch_row", "body"),
        ({**body_row(), "custom_id": None}, "bad_batch_row", "custom_id"),
    ],
)
def test_an_openai_row_that_asks_for_more_fails_and_names_it(
    tmp_path: Path, row: dict[str, Any], code: str, says: str
) -> None:
    failure = index_of(tmp_path, lines(row), "openai").request(0)
    assert isinstance(failure, Failure), failure
    assert failure.code == code
    assert says in failure.message


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


def test_tools_and_their_calls_reach_the_request(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    chat = [
        {"role": "user", "content": [{"type": "text", "text": "1 + 1"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "2"},
    ]
    asked = {"messages": chat, "tools": [tool]}
    rows = [
        body_row(**asked, tool_choice="auto", parallel_tool_calls=True),
        {**body_row(**asked, tool_choice="none"), "custom_id": "b"},
    ]
    index = index_of(tmp_path, lines(*rows), "openai")
    with_tools, without = index.request(0), index.request(1)
    assert isinstance(with_tools, Request) and isinstance(without, Request)
    assert with_tools.tools == [tool]
    assert without.tools is None
    assert with_tools.messages is not None
    assert [m["content"] for m in with_tools.messages] == ["1 + 1", "", "2"]
    assert with_tools.messages[1]["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    same = index_of(tmp_path / "jsonl", lines({"id": "a", **asked}))
    assert same.request(0) == with_tools


def test_echo_is_for_prompts(tmp_path: Path) -> None:
    index = index_of(tmp_path, lines(body_row("/v1/completions", echo=True)), "openai")
    assert index.request(0) == Request(0, "a", Sampling(), "hi", echo=True)


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
