"""Text: what is encoded, what does not fit, and where a text stops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from models import byte_tokenizer, make_model, prefix_space_tokenizer

from launcher.engine.text import StopFinder, Text
from launcher.errors import PreflightError
from launcher.input.codes import RowError
from launcher.job.spec import ModelSpec
from launcher.records import Request, Sampling

MESSAGES = [{"role": "user", "content": "the dog"}]


def text(tokenizer: Any = None, **options: Any) -> Text:
    return Text(tokenizer or byte_tokenizer(), **{"eos": frozenset([1]), "context": 100} | options)


def request(prompt: str | None = None, messages: list[dict[str, Any]] | None = None) -> Request:
    return Request(0, "0", Sampling(), prompt, messages)


def shown(text: Text, row: Request) -> str:
    """What a row is encoded to, with its special tokens."""
    return str(text._tokenizer.decode(text.encode(row)))


def test_a_prompt_is_encoded_as_it_is_with_one_bos() -> None:
    assert shown(text(), request("the dog")) == "<s>the dog"
    assert shown(text(), request("<s>the dog")) == "<s>the dog"


def test_messages_go_through_the_template_which_writes_bos_itself() -> None:
    assert shown(text(), request(messages=MESSAGES)) == "<s><|user|>the dog\n<|assistant|>"


def test_a_template_from_a_file_takes_messages_and_prompts(tmp_path: Path) -> None:
    path = make_model(tmp_path / "model", "llama", num_hidden_layers=1)
    file = tmp_path / "template.jinja"
    file.write_text("{% for m in messages %}[{{ m['content'] }}]{% endfor %}")
    loaded = Text.load(ModelSpec(path=str(path)), max_length=50, template=str(file))
    assert shown(loaded, request(messages=MESSAGES)) == "[the dog]"
    assert shown(loaded, request("a cat")) == "[a cat]"
    with pytest.raises(PreflightError, match="template"):
        Text.load(ModelSpec(path=str(path)), max_length=50, template=str(tmp_path / "none.jinja"))


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[5]['content'] }}",
        "{{ raise_exception('roles must alternate') }}",
        "{% for m in messages %}{{ m['content'] + 1 }}{% endfor %}",
        "{{ 1 // 0 }}",
        "{% if %}",
        "{{ messages.__class__.__mro__ }}{{ self.__init__.__globals__ }}",
    ],
)
def test_a_template_that_fails_is_that_rows_failure(template: str) -> None:
    with pytest.raises(RowError) as caught:
        text(template=template).encode(request(messages=MESSAGES))
    assert caught.value.code == "bad_template"


def test_messages_without_a_template_fail() -> None:
    tokenizer = prefix_space_tokenizer()
    for one in (text(tokenizer), text(template="none")):
        with pytest.raises(RowError) as caught:
            one.encode(request(messages=MESSAGES))
        assert caught.value.code == "bad_template"


def test_what_does_not_fit_or_is_empty_or_no_unicode() -> None:
    short = text(context=5)
    assert len(short.encode(request("QWZ"))) == 4
    for row, code in (
        (request("QWZX"), "too_long"),
        (request("a\ud800"), "bad_unicode"),
        (request(messages=[{"role": "user", "content": "\udc00"}]), "bad_unicode"),
    ):
        with pytest.raises(RowError) as caught:
            short.encode(row)
        assert caught.value.code == code
    with pytest.raises(RowError) as caught:
        text(prefix_space_tokenizer()).encode(request(""))
    assert caught.value.code == "no_prompt"


def test_a_token_that_the_model_does_not_have_is_that_rows_error() -> None:
    tokens = text().encode(request("QWZ"))
    assert text(vocabulary=max(tokens) + 1).encode(request("QWZ")) == tokens
    with pytest.raises(RowError) as caught:
        text(vocabulary=max(tokens)).encode(request("QWZ"))
    assert caught.value.code == "unknown_token"


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": [7, 9]}, {"eos_token_id": 5}, {7, 9}),
        ({"eos_token_id": 7}, {"eos_token_id": 5}, {7}),
        ({}, {"eos_token_id": [5, 6]}, {5, 6}),
        (None, {"eos_token_id": 5}, {5}),
        (None, {"eos_token_id": None}, {1}),  # the tokenizer's
    ],
)
def test_eos_is_the_generation_configs_then_the_configs(
    tmp_path: Path, generation: Any, config: dict[str, Any], expected: set[int]
) -> None:
    path = make_model(tmp_path, "llama", num_hidden_layers=1)
    (path / "generation_config.json").unlink()
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    whole = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(whole | config))
    assert Text.load(ModelSpec(path=str(path)), max_length=50).eos == expected


def test_the_context_is_the_slots_or_the_models(tmp_path: Path) -> None:
    path = make_model(tmp_path, "gpt_neox", num_hidden_layers=1, max_position_embeddings=64)
    assert Text.load(ModelSpec(path=str(path)), max_length=50).context == 50
    assert Text.load(ModelSpec(path=str(path)), max_length=500).context == 64


def test_a_model_without_tokenizer_is_told(tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match="tokenizer"):
        Text.load(ModelSpec(path=str(tmp_path)), max_length=50)


def first_stop(one: Text, whole: str, *stops: str) -> tuple[str | None, int]:
    """The text before the first stop string that is found while ``whole`` grows, and the tokens read."""
    tokens = one._tokenizer(whole, add_special_tokens=False).input_ids
    finder = StopFinder(one, stops)
    for count in range(1, len(tokens) + 1):
        if finder.found(tokens[:count]):
            return finder.cut(one.decode(tokens[:count])), count
    return None, len(tokens)


@pytest.mark.parametrize("tokenizer", [byte_tokenizer, prefix_space_tokenizer])
@pytest.mark.parametrize(
    ("stops", "before"),
    [
        (("dog",), "the quick an the "),
        (("k an",), "the quic"),  # across tokens
        (("g", "an the"), "the quick "),  # whichever comes first
        ((" dog", "🙂"), "the quick an the"),
        (("好",), "the quick an the dog é 你"),  # within a character of several tokens
        (("🙂", "x"), "the quick an the dog é 你好"),
        (("", "the quick an the dog é"), ""),
        (("Dog", "z"), None),
    ],
)
def test_stop_strings(tokenizer: Any, stops: tuple[str, ...], before: str | None) -> None:
    whole = "the quick an the dog é 你好🙂 and on an on"
    found, count = first_stop(text(tokenizer()), whole, *stops)
    assert found == before
    if before is not None:  # and no later than with the token that completed it
        tokens = tokenizer()(whole, add_special_tokens=False).input_ids
        assert not any(
            stop and stop in text(tokenizer()).decode(tokens[: count - 1]) for stop in stops
        )


def test_a_stop_string_that_is_a_special_token() -> None:
    one = text()
    tokens = one._tokenizer("so<|user|>", add_special_tokens=False).input_ids
    finder = StopFinder(one, ("<|user|>",))
    assert [finder.found(tokens[:count]) for count in range(1, len(tokens) + 1)] == [
        *[False] * (len(tokens) - 1),
        True,
    ]
    assert one.decode(tokens) == "so"


TOOLS = [{"type": "function", "function": {"name": "add"}}]


def test_tools_go_through_a_template_that_has_a_place_for_them() -> None:
    row = Request(0, "0", Sampling(), None, MESSAGES, TOOLS)
    shows = "{% for t in tools or [] %}{{ t.function.name }};{% endfor %}{{ messages[0].content }}"
    assert shown(text(template=shows), row) == "add;the dog"
    assert shown(text(template=shows), request(messages=MESSAGES)) == "the dog"
    with pytest.raises(RowError, match="no place for tools"):
        text().encode(row)
