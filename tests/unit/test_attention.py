"""Attention in pieces: the same numbers, from keys that are no longer than they need to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models import make_model
from transformers import AutoModelForCausalLM

from launcher.model import attention
from launcher.model.attention import NAME, Pieces, use_pieces
from launcher.model.runner import StageRunner
from launcher.model.step import Step
from launcher.plan.plan import Batch

LENGTHS = [3, 70, 5, 300]


def step(kind: str, tokens: torch.Tensor, starts: list[int], counts: list[int]) -> Step:
    return Step(
        group=0,
        kind=kind,
        slots=torch.arange(len(starts)),
        tokens=tokens,
        starts=torch.tensor(starts),
        counts=torch.tensor(counts),
    )


def logits(runner: StageRunner) -> torch.Tensor:
    """Of a prefill of rows of LENGTHS and two decode steps, (steps, rows, vocabulary)."""
    torch.manual_seed(0)
    rows = len(LENGTHS)
    found = [runner.run(step("prefill", torch.randint(5, 400, (rows, 300)), [0] * rows, LENGTHS))]
    for done in range(2):
        starts = [length + done for length in LENGTHS]
        found.append(
            runner.run(step("decode", torch.randint(5, 400, (rows, 1)), starts, [1] * rows))
        )
    return torch.stack(found)


def load(path: Path, implementation: str | None = None) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, attn_implementation=implementation).eval()


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gpt_neox"])
def test_pieces_give_what_the_whole_gives(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_model(tmp_path, architecture, max_position_embeddings=512)
    batch = Batch(groups=1, slots=4, max_length=400, prefill_chunk=512)
    seen: list[list[int]] = []
    plain = attention.sdpa_attention_forward

    def spy(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        seen.append([query.shape[0], query.shape[2], key.shape[2]])
        return plain(module, query, key, value, mask, **options)

    monkeypatch.setattr(attention, "sdpa_attention_forward", spy)
    model = load(path)
    found = logits(StageRunner(model, batch))
    assert model.config._attn_implementation == NAME
    layers = model.config.num_hidden_layers
    prefill = [[1, length, length] for length in LENGTHS]
    decode = [[[2, 1, 6 + n], [1, 1, 71 + n], [1, 1, 301 + n]] for n in range(2)]
    assert seen == prefill * layers + decode[0] * layers + decode[1] * layers

    monkeypatch.setattr(Pieces, "of_rows", lambda *_: None)
    monkeypatch.setattr(Pieces, "of_queries", lambda *_: None)
    whole = logits(StageRunner(load(path), batch))
    torch.testing.assert_close(found, whole, atol=2e-4, rtol=1e-4)
    assert torch.equal(found.argmax(-1), whole.argmax(-1))


def test_a_model_that_attends_eagerly_stays_as_it_is(tmp_path: Path) -> None:
    model = load(make_model(tmp_path, "llama"), "eager")
    assert not use_pieces(model)
    assert model.config._attn_implementation == "eager"


def test_a_model_with_pieces_still_generates(tmp_path: Path) -> None:
    path = make_model(tmp_path, "llama")
    one, other = load(path), load(path)
    assert use_pieces(other) and use_pieces(other)
    tokens = torch.arange(20, 40).view(2, 10)
    settings = {"max_new_tokens": 10, "do_sample": False}
    assert torch.equal(one.generate(tokens, **settings), other.generate(tokens, **settings))
