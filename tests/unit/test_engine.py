"""The engine over real models: token for token what transformers.generate gives, whatever the batch."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from models import ARCHITECTURES, make_model

from launcher.engine.engine import Engine
from launcher.engine.text import Text
from launcher.job.spec import ModelSpec
from launcher.measure.spans import NullRecorder
from launcher.model.local import LocalStepModel
from launcher.model.weights import Loading, load_model
from launcher.plan.plan import Batch
from launcher.records import Failure, Generation, Request, Sampling

NEW = 20
LENGTHS = (1, 2, 3, 5, 8, 11, 13, 17, 24, 40)  # tokens of the prompts, bos included


class Case:
    """A model with prompts and what transformers.generate makes of each of them alone."""

    def __init__(self, path: Path, dtype: str = "float32", attention: str = "sdpa") -> None:
        torch.set_num_threads(1)
        self.spec = ModelSpec(path=str(path), dtype=dtype, attention=attention)
        self.model = load_model(self.spec, Loading(dtype))
        self.text = Text.load(self.spec, max_length=80)
        letters = random.Random(0)
        # Letters that stand in no merged pair, so that n of them are n tokens.
        self.prompts = ["".join(letters.choices("QWZXJK", k=n - 1)) for n in LENGTHS]
        self.expected = [self.generate(prompt) for prompt in self.prompts]

    def generate(self, prompt: str, **options: Any) -> str:
        tokens = torch.tensor([self.text.encode(request(0, prompt))])
        made = self.model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=NEW,
            do_sample=False,
            **options,
        )
        return self.text.decode(made[0, tokens.shape[1] :].tolist())

    def run(self, batch: Batch, requests: list[Request], pack: int = 512) -> dict[str, Any]:
        return run(
            LocalStepModel(self.model, batch, NullRecorder(), pack), self.text, batch, requests
        )


def request(index: int, prompt: str, **sampling: Any) -> Request:
    return Request(index, f"row-{index}", Sampling(**{"max_new_tokens": NEW} | sampling), prompt)


def run(model: Any, text: Text, batch: Batch, requests: list[Request]) -> dict[str, Any]:
    rows = iter(requests)
    found: dict[str, Any] = {}

    def emit(row: Generation | Failure) -> None:
        assert row.id not in found
        found[row.id] = row

    assert Engine(model, text, batch).run(lambda: next(rows, None), emit)
    return found


@pytest.fixture(scope="module", params=ARCHITECTURES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(make_model(tmp_path_factory.mktemp("model"), request.param))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(make_model(tmp_path_factory.mktemp("model"), "llama"))


BATCHES = [
    # groups, slots, prefill_chunk, tokens packed into one forward pass
    (1, 1, 512, 512),
    (1, 4, 512, 512),
    (1, 10, 64, 16),
    (2, 3, 7, 7),
    (3, 2, 1, 1),
]


@pytest.mark.parametrize(("groups", "slots", "chunk", "pack"), BATCHES)
def test_tokens_are_those_of_generate(
    case: Case, groups: int, slots: int, chunk: int, pack: int
) -> None:
    batch = Batch(groups=groups, slots=slots, max_length=80, prefill_chunk=chunk)
    requests = [request(index, prompt) for index, prompt in enumerate(case.prompts)]
    random.Random(slots).shuffle(requests)
    found = case.run(batch, requests, pack)
    assert [found[f"row-{index}"].text for index in range(len(LENGTHS))] == case.expected
    assert len(set(case.expected)) == len(LENGTHS)  # the model says something about its prompt
    assert [found[f"row-{i}"].prompt_tokens for i in range(len(LENGTHS))] == list(LENGTHS)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_eager_attention_and_tied_embeddings(architecture: str, tmp_path: Path) -> None:
    path = make_model(tmp_path, architecture, tie_word_embeddings=True)
    case = Case(path, attention="eager")
    batch = Batch(groups=1, slots=4, max_length=80, prefill_chunk=16)
    found = case.run(batch, [request(index, prompt) for index, prompt in enumerate(case.prompts)])
    assert [found[f"row-{index}"].text for index in range(len(LENGTHS))] == case.expected


def test_growing_past_a_block_of_the_cache(tmp_path: Path) -> None:
    case = Case(make_model(tmp_path, "qwen3", max_position_embeddings=1024))
    case.text = Text.load(case.spec, max_length=1000)
    prompts = ["QWZXJK" * 41, "XJ", "WZQ" * 100]
    batch = Batch(groups=1, slots=3, max_length=1000, prefill_chunk=128)
    found = case.run(batch, [request(index, prompt) for index, prompt in enumerate(prompts)])
    assert [found[f"row-{i}"].text for i in range(3)] == [case.generate(p) for p in prompts]


def test_bf16_differs_from_generate_by_rounding_alone(tmp_path: Path) -> None:
    case = Case(make_model(tmp_path, "llama"), dtype="bfloat16")
    batch = Batch(groups=1, slots=4, max_length=80, prefill_chunk=16)
    found = case.run(batch, [request(index, prompt) for index, prompt in enumerate(case.prompts)])
    same = [found[f"row-{i}"].text[:3] == text[:3] for i, text in enumerate(case.expected)]
    assert sum(same) >= len(same) - 2


def test_eos_ends_a_row_and_is_not_in_its_text(llama: Case) -> None:
    tokens = llama.text.encode(request(0, llama.prompts[5]))
    eos = llama.model.generate(torch.tensor([tokens]), max_new_tokens=4, do_sample=False)[0, -1]
    text = Text(
        llama.text._tokenizer,
        eos=frozenset([int(eos), 399]),
        context=80,
    )
    batch = Batch(groups=1, slots=2, max_length=80, prefill_chunk=64)
    model = LocalStepModel(llama.model, batch, NullRecorder())
    row = run(model, text, batch, [request(0, llama.prompts[5])])["row-0"]
    assert (row.finish_reason, row.completion_tokens) == ("stop", 4)
    assert row.text == llama.expected[5][: len(row.text)]
    assert row.text != llama.expected[5]


def test_length_is_bounded_by_the_row_and_by_the_context(llama: Case) -> None:
    batch = Batch(groups=1, slots=3, max_length=80, prefill_chunk=64)
    found = llama.run(
        batch,
        [
            request(0, "Q" * 70, max_new_tokens=50),
            request(1, "Q" * 79),
            request(2, "Q", max_new_tokens=1),
            request(3, "Q" * 78),
        ],
    )
    assert (found["row-0"].completion_tokens, found["row-0"].finish_reason) == (9, "length")
    assert found["row-1"].code == "too_long"
    assert (found["row-2"].completion_tokens, found["row-2"].finish_reason) == (1, "length")
    assert found["row-3"].completion_tokens == 1


def test_a_sampled_text_depends_on_prompt_and_seed_alone(llama: Case) -> None:
    def rows(order: list[int]) -> list[Request]:
        return [
            request(i, llama.prompts[i], temperature=0.9, top_p=0.95, top_k=50 * (i % 2), seed=i)
            for i in order
        ]

    one = Batch(groups=1, slots=1, max_length=80, prefill_chunk=512)
    many = Batch(groups=2, slots=3, max_length=80, prefill_chunk=6)
    alone = llama.run(one, rows(list(range(10))))
    together = llama.run(many, rows([7, 3, 9, 0, 1, 8, 2, 6, 5, 4]))
    assert alone == together
    assert [alone[f"row-{i}"].text for i in range(10)] != llama.expected
    other = llama.run(one, [request(0, llama.prompts[0], temperature=0.9, seed=99)])
    assert other["row-0"].text != alone["row-0"].text


def test_nan_in_the_logits_is_that_rows_failure(tmp_path: Path) -> None:
    case = Case(make_model(tmp_path, "llama"))
    case.model.model.embed_tokens.weight.data[case.text.encode(request(0, "Q"))[1]] = torch.nan
    batch = Batch(groups=1, slots=3, max_length=80, prefill_chunk=4)
    prompts = ["WZ", "WQ", "ZZ", "ZXWJKZXWJ", "Q" * 9, "XJ"]
    found = case.run(batch, [request(index, prompt) for index, prompt in enumerate(prompts)])
    assert {row.code for row in found.values() if isinstance(row, Failure)} == {"not_a_number"}
    for index, prompt in enumerate(prompts):
        row = found[f"row-{index}"]
        assert "Q" in prompt if isinstance(row, Failure) else row.text == case.generate(prompt)


def test_the_logits_of_padding_and_prompts_are_not_computed(
    llama: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    head = llama.model.lm_head
    original = head.forward
    monkeypatch.setattr(head, "forward", lambda x: seen.append(x.shape[:2].numel()) or original(x))
    batch = Batch(groups=1, slots=3, max_length=80, prefill_chunk=64)
    llama.run(batch, [request(i, llama.prompts[7], max_new_tokens=2) for i in range(3)])
    assert sum(seen) == 3 * 2
