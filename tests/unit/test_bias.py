"""logit_bias and penalties: OpenAI's formula over the model's logits, whatever the batch, and rows that ask for neither."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from models import make_model

from launcher.engine.engine import Engine
from launcher.engine.text import Text
from launcher.errors import SpecError
from launcher.job.load import dump_spec, load_resolved, load_spec
from launcher.job.spec import ModelSpec
from launcher.measure.spans import NullRecorder
from launcher.model.local import LocalStepModel
from launcher.model.sampling import biased, draw, outcome
from launcher.model.step import LogitBias, Step, StepSampling
from launcher.model.weights import Loading, load_model
from launcher.plan.plan import Batch
from launcher.records import Failure, Generation, Request, Sampling

NEW = 16
SETTINGS: list[dict[str, Any]] = [
    {},
    {"frequency_penalty": 1.5},
    {"presence_penalty": 2.0},
    {"presence_penalty": -1.0, "frequency_penalty": 0.5, "logit_bias": ((9, 3.0), (11, 2.5))},
    {"logit_bias": ((300, 100.0),)},
    {"logit_bias": tuple((token, -100.0) for token in range(200))},
    {"temperature": 1.0},
    {"temperature": 1.0, "frequency_penalty": 1.0, "logit_bias": ((7, 4.0),), "top_k": 30},
]


class Case:
    def __init__(self, path: Path) -> None:
        torch.set_num_threads(1)
        spec = ModelSpec(path=str(path), dtype="float32")
        self.model = load_model(spec, Loading("float32"))
        self.text = Text.load(spec, max_length=80)

    def run(self, batch: Batch, requests: list[Request]) -> dict[str, Generation | Failure]:
        pulled, found = iter(requests), dict[str, Generation | Failure]()
        engine = Engine(LocalStepModel(self.model, batch, NullRecorder()), self.text, batch)
        assert engine.run(lambda: next(pulled, None), lambda row: found.update({row.id: row}))  # type: ignore[dict-item]
        return found

    def plain(self, asked: Request) -> list[int]:
        """Token by token, each from a pass over all that is there, as the formula is written in OpenAI's reference."""
        how, counts = asked.sampling, Counter[int]()
        tokens = self.text.encode(asked)
        for position in range(len(tokens), len(tokens) + NEW):
            with torch.no_grad():
                logits = self.model(torch.tensor([tokens])).logits[0, -1].clone()
            for token, value in how.logit_bias:
                logits[token] += value
            for token, count in counts.items():
                logits[token] -= count * how.frequency_penalty + (count > 0) * how.presence_penalty
            token = int(draw(logits[None], one(how, position)))
            tokens.append(token)
            counts[token] += 1
        return tokens[-NEW:]


def one(how: Sampling, position: int) -> StepSampling:
    return StepSampling(
        temperature=torch.tensor([how.temperature], dtype=torch.float64),
        top_p=torch.tensor([how.top_p], dtype=torch.float64),
        top_k=torch.tensor([how.top_k]),
        seed=torch.tensor([how.seed]),
        position=torch.tensor([position]),
    )


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(make_model(tmp_path_factory.mktemp("model"), "llama"))


@pytest.fixture(scope="module")
def requests(case: Case) -> list[Request]:
    letters = random.Random(0)
    return [
        Request(
            n, str(n), Sampling(NEW, seed=n, **how), "".join(letters.choices("QWZXJK", k=3 + n))
        )
        for n, how in enumerate(SETTINGS)
    ]


@pytest.fixture(scope="module")
def expected(case: Case, requests: list[Request]) -> list[list[int]]:
    return [case.plain(request) for request in requests]


@pytest.mark.parametrize(("groups", "slots", "chunk"), [(1, 1, 64), (1, 8, 64), (2, 3, 5)])
def test_texts_are_those_of_the_formula(
    case: Case,
    requests: list[Request],
    expected: list[list[int]],
    groups: int,
    slots: int,
    chunk: int,
) -> None:
    batch = Batch(groups=groups, slots=slots, max_length=80, prefill_chunk=chunk)
    rows = case.run(batch, requests)
    found = [row for n in range(len(SETTINGS)) if isinstance(row := rows[str(n)], Generation)]
    texts = [case.text.decode(tokens) for tokens in expected]
    assert [row.text for row in found] == texts
    assert len(set(texts)) == len(SETTINGS)


def test_a_bias_of_100_is_all_that_is_drawn_and_one_of_minus_100_is_never(
    expected: list[list[int]],
) -> None:
    assert expected[4] == [300] * NEW
    assert not set(expected[5]) & {token for token, _ in SETTINGS[5]["logit_bias"]}


def test_a_token_that_the_model_lacks_fails_its_row(case: Case) -> None:
    vocabulary = case.model.config.vocab_size
    rows = [
        Request(n, str(n), Sampling(NEW, logit_bias=((token, 1.0),)), "QW")
        for n, token in enumerate((vocabulary - 1, vocabulary))
    ]
    found = case.run(Batch(groups=1, slots=2, max_length=80, prefill_chunk=64), rows)
    failed = found["1"]
    assert isinstance(found["0"], Generation) and isinstance(failed, Failure)
    assert failed.code == "bad_sampling"
    assert f"token {vocabulary}, the model has {vocabulary}" in failed.message


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_that_are_not_named_stay_as_they_are(dtype: torch.dtype) -> None:
    logits = torch.randn(3, 10).to(dtype)
    before = logits.clone()
    values = torch.tensor([1.5, -2.0, 0.25], dtype=torch.float64)
    found = biased(logits, LogitBias(torch.tensor([0, 2, 2]), torch.tensor([4, 0, 9]), values))
    assert torch.equal(logits, before), "others look at them, too"
    added = (found - before.float()).nonzero().tolist()
    assert added == [[0, 4], [2, 0], [2, 9]]
    assert found[2, 9] == before[2, 9].float() + 0.25


def test_a_spec_has_biases_by_token_numbers(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(
        "name: x\nmodel: {path: a/b}\ninput: {path: x}\n"
        "generation: {frequency_penalty: 0.5, logit_bias: {5: 1, '7': -2.5}}\n"
    )
    spec = load_spec(path).spec
    assert spec.generation.logit_bias == {5: 1.0, 7: -2.5}
    path.write_text(dump_spec(spec))
    assert load_resolved(path) == spec
    path.write_text(path.read_text().replace("-2.5", "many"))
    with pytest.raises(SpecError, match=r"job.yaml:\d+:\d+: `generation.logit_bias.7` should be"):
        load_resolved(path)


def test_log_probabilities_stay_the_models() -> None:
    logits, ones = torch.tensor([[0.0, 1.0, 2.0]]), torch.ones(1, dtype=torch.int64)
    bias = LogitBias(torch.tensor([0]), torch.tensor([0]), torch.tensor([100.0]).double())
    step = Step(0, "decode", ones, ones[:, None], ones, ones, tops=2, bias=bias)
    (token, own, *best) = outcome(logits, step)[0].tolist()
    assert (token, best[:2]) == (0, [2, 1])
    assert own == pytest.approx(float(logits.log_softmax(-1)[0, 0]))
