"""The scoring engine over real models: log-probabilities are those of the whole model run over each continuation
alone, whatever the batch, and prefixes are computed once."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from models import ARCHITECTURES, make_model

from launcher.engine.scoring import ScoreEngine
from launcher.engine.text import Text
from launcher.job.spec import ModelSpec
from launcher.measure.spans import NullRecorder
from launcher.model.local import LocalStepModel
from launcher.model.step import Step
from launcher.model.weights import Loading, load_model
from launcher.plan.plan import Batch
from launcher.records import Failure, Request, Sampling, Score

LENGTH = 120
# Letters that stand in no merged pair, so that n of them are n tokens.
LETTERS = "QWZXJK"
BATCHES = [
    # groups, slots, prefill_chunk, tokens packed into one forward pass
    (1, 1, 512, 512),
    (1, 4, 64, 16),
    (2, 3, 7, 7),
    (3, 2, 1, 1),
]


def text(draw: random.Random, length: int) -> str:
    return "".join(draw.choices(LETTERS, k=length))


def questions() -> list[tuple[str, list[str]]]:
    """Prefixes of all lengths, some of them several times and some beginning alike; continuations of all lengths."""
    draw = random.Random(0)
    shared = text(draw, 30)
    prefixes = ["", text(draw, 1), text(draw, 12), *(shared + text(draw, n) for n in (0, 5, 9))]
    prefixes += [prefixes[2], prefixes[4], prefixes[4]]
    counts = [(3, 1, 9), (1, 1), (40,), (1, 2, 3, 4, 5), (1,), (2, 2), (20, 1), (1, 30), (7, 8)]
    return [
        (prefix, [text(draw, count) for count in own])
        for prefix, own in zip(prefixes, counts, strict=True)
    ]


def request(index: int, prefix: str, continuations: Sequence[str]) -> Request:
    return Request(index, f"row-{index}", Sampling(), prefix, continuations=tuple(continuations))


class Watched:
    """A StepModel that counts the tokens that it is fed."""

    def __init__(self, model: LocalStepModel) -> None:
        self.model, self.depth, self.fed, self.steps = model, 1, 0, list[Step]()

    def launch(self, step: Step) -> None:
        self.fed += int(step.counts.sum())
        self.steps.append(step)
        self.model.launch(step)

    def collect(self) -> torch.Tensor:
        return self.model.collect()

    def close(self) -> None:
        self.model.close()


class Case:
    def __init__(self, path: Path, dtype: str = "float32", attention: str = "sdpa") -> None:
        torch.set_num_threads(1)
        self.spec = ModelSpec(path=str(path), dtype=dtype, attention=attention)
        self.model = load_model(self.spec, Loading(dtype))
        self.text = Text.load(self.spec, max_length=LENGTH)

    def alone(self, tokens: list[int], given: int) -> list[float]:
        """The log-probabilities of the tokens from number ``given`` on, by one pass over all."""
        with torch.inference_mode():
            logits = self.model(torch.tensor([tokens])).logits[0].float().log_softmax(dim=-1)
        return [float(logits[place - 1, tokens[place]]) for place in range(given, len(tokens))]

    def run(self, batch: Batch, requests: list[Request], pack: int = 512) -> dict[str, Any]:
        watched = Watched(LocalStepModel(self.model, batch, NullRecorder(), pack))
        return self.run_on(watched, batch, requests)

    def run_on(self, model: Watched, batch: Batch, requests: list[Request]) -> dict[str, Any]:
        rows = iter(requests)
        found: dict[str, Any] = {}

        def emit(row: Any) -> None:
            assert row.id not in found
            found[row.id] = row

        assert ScoreEngine(model, self.text, batch).run(lambda: next(rows, None), emit)
        return found


@pytest.fixture(scope="module", params=ARCHITECTURES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    # Weights as large as this family's in other tests make rounding alone larger than what is held here.
    changes = {"initializer_range": 0.3} if request.param == "gpt_neox" else {}
    return Case(make_model(tmp_path_factory.mktemp("model"), request.param, **changes))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(make_model(tmp_path_factory.mktemp("model"), "llama"))


def check(case: Case, found: dict[str, Any]) -> None:
    """Equal to full recomputation within 1e-4."""
    for index, (prefix, continuations) in enumerate(questions()):
        row = found[f"row-{index}"]
        assert isinstance(row, Score), row
        assert row.prompt_tokens == 1 + len(prefix)
        assert row.completion_tokens == sum(map(len, continuations))
        for score, continuation in zip(row.scores, continuations, strict=True):
            tokens = case.text.tokens(prefix + continuation, special=True)
            expected = case.alone(tokens, 1 + len(prefix))
            assert score["token_ids"] == tokens[1 + len(prefix) :]
            assert score["tokens"] == pytest.approx(expected, abs=1e-4)
            assert score["logprob"] == pytest.approx(sum(expected), abs=1e-4)
            assert score["mean_logprob"] == pytest.approx(sum(expected) / len(expected), abs=1e-4)
        for key, value in (("best", "logprob"), ("best_mean", "mean_logprob")):
            values = [score[value] for score in row.scores]
            assert values[getattr(row, key)] == max(values)


@pytest.mark.parametrize(("groups", "slots", "chunk", "pack"), BATCHES)
def test_log_probabilities_are_those_of_the_whole_model(
    case: Case, groups: int, slots: int, chunk: int, pack: int
) -> None:
    batch = Batch(groups=groups, slots=slots, max_length=LENGTH, prefill_chunk=chunk)
    requests = [request(index, *question) for index, question in enumerate(questions())]
    random.Random(slots).shuffle(requests)
    check(case, case.run(batch, requests, pack))


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "mixtral"])
def test_eager_attention_and_tied_embeddings(architecture: str, tmp_path: Path) -> None:
    case = Case(make_model(tmp_path, architecture, tie_word_embeddings=True), attention="eager")
    batch = Batch(groups=1, slots=3, max_length=LENGTH, prefill_chunk=40)
    requests = [request(index, *question) for index, question in enumerate(questions())]
    check(case, case.run(batch, requests, pack=30))


def watched(case: Case, batch: Batch) -> Watched:
    return Watched(LocalStepModel(case.model, batch, NullRecorder()))


def test_a_prefix_is_computed_once(llama: Case) -> None:
    """For its continuations, for rows that follow, and for rows that begin alike."""
    draw = random.Random(1)
    header, asked = text(draw, 50), [text(draw, 3), text(draw, 1), text(draw, 2)]
    batch = Batch(groups=2, slots=4, max_length=LENGTH, prefill_chunk=16)
    model = watched(llama, batch)
    rows = [request(index, header, asked) for index in range(10)]
    assert len(llama.run_on(model, batch, rows)) == 10
    # The prefix with bos; continuations without their last tokens; and the prefix's last token again for rows that
    # come when it is there already.
    assert 51 + 10 * 3 <= model.fed <= 51 + 10 * 4
    model = watched(llama, batch)
    rows = [request(index, header + text(draw, 10), asked) for index in range(10)]
    llama.run_on(model, batch, rows)
    # Two slots of each group take turns: the next row comes before the one at hand is done.
    assert model.fed <= 4 * 51 + 10 * (10 + 4), "slots that hold the header are not preferred"


def test_options_of_one_question_are_one_step(llama: Case) -> None:
    """Prefix and continuations go through the layers together."""
    batch = Batch(groups=1, slots=4, max_length=LENGTH, prefill_chunk=512)
    model = watched(llama, batch)
    llama.run_on(model, batch, [request(0, "QWZ", ["XXJ", "JZ", "K", "KKKK"])])
    (step,) = model.steps
    assert step.counts.tolist() == [4, 2 + 1 + 3]
    assert step.answers == 3 + 2 + 1 + 4


def test_logits_are_made_in_pieces(llama: Case) -> None:
    batch = Batch(groups=1, slots=2, max_length=LENGTH, prefill_chunk=512)
    model = watched(llama, batch)
    most: list[int] = []
    hook = llama.model.lm_head.register_forward_hook(
        lambda _, __, made: most.append(made.shape[:-1].numel())
    )
    llama.run_on(model, batch, [request(0, "Q" * 90, ["X" * 25])])
    hook.remove()
    assert max(most) == 2, "as many as there are slots"
    assert sum(most) == 25, "only where continuations are asked for"


def test_more_options_than_a_step_may_ask_for(llama: Case) -> None:
    batch = Batch(groups=1, slots=2, max_length=LENGTH, prefill_chunk=3)
    options = [f"{one}{other}" for one in LETTERS for other in LETTERS]
    row = llama.run(batch, [request(0, "QQW", options)])["row-0"]
    expected = [sum(llama.alone(llama.text.tokens("QQW" + o, special=True), 4)) for o in options]
    assert [score["logprob"] for score in row.scores] == pytest.approx(expected, abs=1e-4)


def test_rows_that_fail_and_rows_beside_them(llama: Case) -> None:
    batch = Batch(groups=1, slots=2, max_length=LENGTH, prefill_chunk=64)
    rows = [
        request(0, "QW", ["X"]),
        request(1, "Q" * LENGTH, ["X"]),
        request(2, "Q" * (LENGTH - 5), ["X" * 6, "J"]),
        request(3, "Q" * (LENGTH - 5), ["X" * 5, "J"]),
    ]
    found = llama.run(batch, rows)
    assert isinstance(found["row-0"], Score)
    assert isinstance(found["row-3"], Score), "exactly as long as a slot"
    for index in (1, 2):
        assert isinstance(found[f"row-{index}"], Failure)
        assert found[f"row-{index}"].code == "too_long"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_not_a_number_fails_its_row_alone(attention: str, tmp_path: Path) -> None:
    case = Case(make_model(tmp_path, "llama"), attention=attention)
    bad = case.text.tokens("\n", special=False)
    assert len(bad) == 1
    with torch.no_grad():
        case.model.get_input_embeddings().weight[bad] = torch.inf
    batch = Batch(groups=1, slots=4, max_length=LENGTH, prefill_chunk=256)
    rows = [request(index, *question) for index, question in enumerate(questions())]
    rows.insert(3, request(90, "QQ\n", ["X", "J"]))
    rows.insert(5, request(91, "JJJ", ["\nX", "J"]))
    found = case.run(batch, rows)
    for index in (90, 91):
        assert found[f"row-{index}"].code == "not_a_number"
    check(case, found)


def test_slots_forget_prefixes_that_went_wrong(tmp_path: Path) -> None:
    case = Case(make_model(tmp_path, "llama"))
    with torch.no_grad():
        case.model.get_input_embeddings().weight[case.text.tokens("\n", special=False)] = torch.inf
    batch = Batch(groups=2, slots=2, max_length=LENGTH, prefill_chunk=64)
    engine = ScoreEngine(watched(case, batch), case.text, batch)
    rows = iter([request(n, f"{'Q' * n}\n", ["X", "JW"]) for n in range(20)])
    held: list[int] = []
    assert engine.run(lambda: next(rows, None), lambda _: held.append(len(engine._holders)))
    assert len(held) == 20
    assert max(held) <= batch.groups * batch.slots


def test_a_stop_gives_up_what_is_in_flight(llama: Case) -> None:
    batch = Batch(groups=2, slots=2, max_length=LENGTH, prefill_chunk=8)
    engine = ScoreEngine(watched(llama, batch), llama.text, batch)
    rows = [request(index, *question) for index, question in enumerate(questions())]
    found: dict[str, Any] = {}
    pulled = iter(rows)

    def emit(row: Any) -> None:
        found[row.id] = row

    assert not engine.run(lambda: next(pulled, None), emit, lambda: len(found) >= 2)
    assert 2 <= len(found) < len(rows)
    again = iter([row for row in rows if row.id not in found])
    assert engine.run(lambda: next(again, None), emit)
    check(llama, found)
    assert all(math.isfinite(score["logprob"]) for row in found.values() for score in row.scores)
