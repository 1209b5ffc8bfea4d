"""Several answers to a row: each as if it were a row of its own, and the row done when all are there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from models import make_model
from prompt_files import body_row, index_of, lines
from test_engine import Case, request

from launcher.engine.choices import APART, Choices
from launcher.engine.engine import Engine
from launcher.input.files import Line
from launcher.input.indexer import SAMPLE, Tally
from launcher.job.spec import GenerationSpec
from launcher.measure.spans import NullRecorder
from launcher.model.local import LocalStepModel
from launcher.plan.plan import Batch
from launcher.records import Demand, Failure, Generation, Request

BATCH = Batch(groups=2, slots=3, max_length=80, prefill_chunk=16)


class Scene:
    """Choices between these rows and ``done``."""

    def __init__(self, *rows: Request) -> None:
        self._rows = iter(rows)
        self.done: list[Any] = []
        self.choices = Choices(lambda: next(self._rows, None), self.done.append)

    def pull(self) -> Request:
        found = self.choices.pull()
        assert found is not None
        return found

    def answer(self, asked: Request, text: str, tokens: int = 3) -> None:
        self.choices.emit(Generation(asked.index, asked.id, text, "stop", 5, tokens))

    def fail(self, asked: Request) -> None:
        self.choices.emit(Failure(asked.index, asked.id, "too_long", "90 tokens"))


def test_a_row_is_done_when_all_its_answers_are_in_their_order() -> None:
    scene = Scene(request(0, "a", n=3, seed=7), request(1, "b"))
    asked = [scene.pull() for _ in range(4)]
    assert scene.choices.pull() is None
    assert asked[3] == request(1, "b")
    assert [each.sampling.n for each in asked] == [1] * 4
    assert asked[0].sampling.seed == 7
    assert [each.sampling.seed for each in asked[1:3]] == [(7 + k * APART) % 2**63 for k in (1, 2)]
    scene.answer(asked[2], "third", 4)
    scene.answer(asked[0], "first", 1)
    scene.answer(asked[3], "other")
    scene.answer(asked[1], "second", 2)
    other, whole = scene.done
    assert (other.index, other.choices) == (1, None)
    assert (whole.index, whole.id, whole.text) == (0, "row-0", "first")
    assert (whole.prompt_tokens, whole.completion_tokens) == (5, 7)
    assert whole.choices == [
        {"text": text, "finish_reason": "stop", "completion_tokens": tokens}
        for text, tokens in (("first", 1), ("second", 2), ("third", 4))
    ]


def test_a_row_fails_once_and_takes_no_other_with_it() -> None:
    scene = Scene(request(0, "a", n=3), request(1, "b", n=2))
    first, second = scene.pull(), scene.pull()
    scene.fail(second)
    assert [(row.index, row.code) for row in scene.done] == [(0, "too_long")]
    others = [scene.pull(), scene.pull()]  # the third answer is not asked for any more
    assert scene.choices.pull() is None
    scene.answer(first, "too late")
    for other in others:
        scene.answer(other, "b")
    assert [row.index for row in scene.done] == [0, 1]


def test_a_failure_leaves_the_answers_of_a_later_row_to_come() -> None:
    scene = Scene(request(0, "a", n=2), request(1, "b", n=2))
    first, second, third = (scene.pull() for _ in range(3))
    scene.fail(first)
    scene.fail(second)
    fourth = scene.pull()
    scene.answer(fourth, "y")
    scene.answer(third, "x")
    failed, done = scene.done
    assert (failed.index, done.index) == (0, 1)
    assert [choice["text"] for choice in done.choices] == ["x", "y"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(make_model(tmp_path_factory.mktemp("model"), "llama"))


def generate(case: Case, rows: Sequence[Request]) -> dict[int, Generation]:
    waiting, found = iter(rows), {}
    choices = Choices(lambda: next(waiting, None), lambda row: found.setdefault(row.index, row))
    model = LocalStepModel(case.model, BATCH, NullRecorder())
    assert Engine(model, case.text, BATCH).run(choices.pull, choices.emit)
    return found  # type: ignore[return-value]


def test_answers_are_those_of_rows_with_such_seeds(llama: Case) -> None:
    drawn = {"temperature": 1.0, "logprobs": 2}
    rows = [request(i, prompt, n=4, seed=i, **drawn) for i, prompt in enumerate(llama.prompts[:5])]
    alone = [
        request(4 * i + k, prompt, seed=(i + k * APART) % 2**63, **drawn)
        for i, prompt in enumerate(llama.prompts[:5])
        for k in range(4)
    ]
    several, single = generate(llama, rows), generate(llama, alone)
    for index in range(5):
        row, own = several[index], [single[4 * index + k] for k in range(4)]
        assert row.choices is not None
        assert [choice["text"] for choice in row.choices] == [each.text for each in own]
        assert [choice["logprobs"] for choice in row.choices] == [each.logprobs for each in own]
        assert row.completion_tokens == sum(each.completion_tokens for each in own)
        assert len({each.text for each in own}) > 1


def test_too_long_a_prompt_is_one_failure(llama: Case) -> None:
    found = generate(llama, [request(0, "Q" * 200, n=5), request(1, llama.prompts[3], n=2)])
    assert isinstance(found[0], Failure) and found[0].code == "too_long"
    assert found[1].choices is not None
    assert [choice["text"] for choice in found[1].choices] == [llama.expected[3]] * 2


def test_n_of_rows_and_of_the_spec(tmp_path: Path) -> None:
    rows = lines(
        body_row(n=3), {**body_row(), "custom_id": "b"}, {**body_row(n=129), "custom_id": "c"}
    )
    index = index_of(tmp_path, rows, "openai", generation={"n": 2})
    first, second, third = (index.request(row) for row in range(3))
    assert isinstance(first, Request) and first.sampling.n == 3
    assert isinstance(second, Request) and second.sampling.n == 2
    assert isinstance(third, Failure) and "n: Input should be less" in third.message


def test_a_plan_counts_answers_and_gives_rows_away_whole(tmp_path: Path) -> None:
    assert Demand(2, 10, 5, answers=8.0).sequences == 16
    assert Demand(2, 10, 5, answers=8.0).share(4) == 8
    assert Demand(10, 10, 5, answers=3.0).share(4) == 9
    few, many = {"max_new_tokens": 10}, {"max_new_tokens": 1000, "n": 99}
    rows = [{"prompt": "x", **(many if number % 2 else few)} for number in range(200)]
    tally = Tally(GenerationSpec())
    for row in rows:
        tally.add(Line(1, 0, json.dumps(row).encode()), "jsonl")
    demand = tally.demand()
    assert (demand.rows, demand.answers) == (200, 50.0)
    assert len(demand.sample) <= 2 * SAMPLE
    mean = sum(new for _, new in demand.sample) / len(demand.sample)
    assert mean == pytest.approx(0.99 * 1000 + 0.01 * 10, rel=0.05)  # of rows alone it is 505
