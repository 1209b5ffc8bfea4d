"""Where prefix and continuation are divided: one place for all continuations of a row."""

from __future__ import annotations

from typing import Any

import pytest
from models import byte_tokenizer, prefix_space_tokenizer

from launcher.engine.boundary import common, divide
from launcher.engine.text import Text
from launcher.input.codes import RowError
from launcher.records import Request, Sampling


def text(tokenizer: Any, **options: Any) -> Text:
    return Text(tokenizer, **{"eos": frozenset(), "context": 100} | options)


def ask(prefix: str, *continuations: str, **options: Any) -> Request:
    return Request(0, "row", Sampling(), prefix, continuations=continuations, **options)


def pieces(tokenizer: Any, request: Request) -> tuple[list[str], list[list[str]]]:
    prefix, continuations = divide(text(tokenizer), request)
    names = tokenizer.convert_ids_to_tokens
    return names(prefix), [names(tokens) for tokens in continuations]


def test_a_boundary_between_tokens() -> None:
    assert pieces(byte_tokenizer(), ask("QW", "ZX", "J")) == (
        ["<s>", "Q", "W"],
        [["Z", "X"], ["J"]],
    )


def test_a_continuation_that_merges_moves_the_boundary_for_all() -> None:
    tokenizer = prefix_space_tokenizer()
    merging = pieces(tokenizer, ask("t", "he", "x"))
    assert merging == (["<s>"], [["▁the"], ["▁t", "x"]])
    assert pieces(tokenizer, ask("t", "x", "z")) == (["▁t"], [["x"], ["z"]])


def test_a_space_at_the_end_of_the_prefix_goes_with_the_word_after_it() -> None:
    given = pieces(prefix_space_tokenizer(), ask("z ", "the", "an"))
    assert given == (["▁", "z"], [["▁the"], ["▁an"]])
    assert pieces(prefix_space_tokenizer(), ask("z", " the", " an")) == given


def test_an_empty_prefix_is_the_first_token_of_a_text() -> None:
    assert pieces(byte_tokenizer(), ask("", "QW", "J")) == (["<s>"], [["Q", "W"], ["J"]])
    # This tokenizer adds none by itself.
    assert pieces(prefix_space_tokenizer(), ask("", "the"))[0] == ["<s>"]


def test_messages_go_through_the_template() -> None:
    message = {"role": "user", "content": "Q"}
    request = Request(0, "row", Sampling(), messages=[message], continuations=("W", "J"))
    prefix, continuations = pieces(byte_tokenizer(), request)
    assert prefix == ["<s>", "<|user|>", "Q", "Ċ", "<|assistant|>"]
    assert continuations == [["W"], ["J"]]


@pytest.mark.parametrize(
    ("request_", "options", "code"),
    [
        (ask("Q" * 60, "J" * 41), {}, "too_long"),
        (ask("Q", "\ud800"), {}, "bad_unicode"),
        (ask("Q", "W"), {"vocabulary": 20}, "unknown_token"),
    ],
)
def test_rows_that_can_not_be_scored(request_: Request, options: Any, code: str) -> None:
    with pytest.raises(RowError) as caught:
        divide(text(byte_tokenizer(), **options), request_)
    assert caught.value.code == code


def test_the_longest_row_fits() -> None:
    prefix, (continuation,) = divide(text(byte_tokenizer()), ask("Q" * 60, "J" * 40))
    assert len(prefix) + len(continuation) == 101


def test_common() -> None:
    for one, other, expected in (
        ([], [], 0),
        ([1], [], 0),
        ([1, 2, 3], [1, 2, 3], 3),
        ([1, 2, 3], [1, 2, 4, 5], 2),
        ([2, 2, 3], [1, 2, 3], 0),
        (list(range(100)), [*range(99), 7], 99),
    ):
        assert common(one, other) == expected
        assert common(other, one) == expected
