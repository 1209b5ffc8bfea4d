"""Rows of OpenAI batch files, tools and echo: what is done, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prompt_files import body_row, index_of, lines

from launcher.records import Failure, Request, Sampling


def test_openai_batch_rows(tmp_path: Path) -> None:
    chat = body_row(
        max_completion_tokens=5,
        temperature=0.5,
        top_p=0.9,
        seed=1,
        stop=["x"],
        user="u",
        n=3,
        best_of=3,
        logprobs=False,
    )
    text = {
        **body_row("/v1/completions", prompt=["hi"], max_tokens=6, logit_bias={}),
        "custom_id": "b",
    }
    index = index_of(tmp_path, lines(chat, text), "auto")
    assert index.request(0) == Request(
        0,
        "a",
        Sampling(5, 0.5, 0.9, 0, 1, ("x",), n=3),
        messages=[{"role": "user", "content": "hi"}],
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
        (body_row(n=0), "bad_sampling", "n: "),
        (body_row(n=True), "bad_sampling", "n can't be true"),
        (body_row(best_of=2), "unsupported_option", "best_of is not supported: n gives"),
        (body_row(tools=[{"type": "function"}]), "bad_tools", "tools[0]"),
        (body_row(tools={"type": "function"}), "bad_tools", "list"),
        (body_row(tool_choice="required"), "unsupported_option", "tool_choice"),
        (body_row(logit_bias={"5": 101}), "bad_sampling", "logit_bias.5"),
        (body_row(logit_bias={"5": True}), "bad_sampling", "logit_bias.5"),
        (body_row(logit_bias={"five": 1}), "bad_sampling", 'logit_bias: "five" is not a token'),
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
        (body_row(max_tokens=0), "bad_sampling", "max_tokens must be 1 to 1048576, not 0"),
        (body_row(max_tokens=True), "bad_sampling", "max_tokens must be"),
        (body_row(max_completion_tokens="5"), "bad_sampling", "max_completion_tokens must be"),
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
