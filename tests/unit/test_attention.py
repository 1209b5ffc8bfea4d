"""Attention in pieces: the same numbers, from keys that are no longer than they need to be."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from models import make_model
from transformers import AutoModelForCausalLM

from launcher.errors import PreflightError
from launcher.model import attention, flash, runner
from launcher.model.attention import NAME, Piece, Pieces, attending, use_flash, use_pieces
from launcher.model.runner import StageRunner
from launcher.model.step import Scoring, Step
from launcher.plan.attends import no_flash
from launcher.plan.plan import Batch

LENGTHS = [3, 70, 5, 300]
MIXED = Batch(groups=1, slots=4, max_length=60, prefill_chunk=512)
# Two continuations of two tokens behind a prefix of two.
BRANCH = Scoring(*map(torch.tensor, ([0, 0, 2, 2, 2, 2], [0, 0, 0, 0, 2, 2], [1, 2, 4], [7, 8, 9])))


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
def test_each_row_attends_to_its_own_positions_alone(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_model(tmp_path, architecture, max_position_embeddings=512)
    batch = Batch(groups=1, slots=4, max_length=400, prefill_chunk=512)
    seen: list[list[int]] = []
    plain = attention._attend

    def spy(module: Any, query: Any, key: Any, *others: Any) -> Any:
        seen.append([key.shape[0], query.shape[2], key.shape[2]])
        return plain(module, query, key, *others)

    monkeypatch.setattr(attention, "_attend", spy)
    model = load(path)
    found = logits(StageRunner(model, batch))
    assert model.config._attn_implementation == NAME
    layers = model.config.num_hidden_layers
    prefill = [[1, length, length] for length in LENGTHS]
    # Rows of similar length together, one query each.
    decode = [[[2, 2, 6 + n], [1, 1, 71 + n], [1, 1, 301 + n]] for n in range(2)]
    assert seen == prefill * layers + decode[0] * layers + decode[1] * layers

    monkeypatch.setattr(runner, "use_pieces", lambda _: False)
    apart = logits(StageRunner(load(path), batch))
    torch.testing.assert_close(found, apart, atol=2e-4, rtol=1e-4)
    assert torch.equal(found.argmax(-1), apart.argmax(-1))


def kernels(query: Any, key: Any, value: Any, ends: list[int], **settings: Any) -> torch.Tensor:
    """What flash-attn documents of its functions: (b, q, heads, width); row i's queries are the last of ``ends[i]``
    positions, of which ``window_size`` are seen to the left."""
    assert query.shape[3] == key.shape[3] == value.shape[3] <= 256
    assert query.stride(3) == key.stride(3) == value.stride(3) == 1
    left, right = settings["window_size"]
    assert settings["causal"] and right in (-1, 0)
    shared, count = query.shape[2] // key.shape[2], query.shape[1]
    found = []
    for row, end in enumerate(ends):
        own, seen = torch.arange(end - count, end)[:, None], torch.arange(end)[None]
        hidden = (seen > own) | ((seen < own - left) if left >= 0 else torch.tensor(False))
        keys, values = (
            x[row, :end].repeat_interleave(shared, 1).transpose(0, 1) for x in (key, value)
        )
        scores = query[row].transpose(0, 1) @ keys.transpose(1, 2) * settings["softmax_scale"]
        if cap := settings["softcap"]:
            scores = cap * (scores / cap).tanh()
        found.append((scores.masked_fill(hidden, -torch.inf).softmax(-1) @ values).transpose(0, 1))
    return torch.stack(found)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for flash-attn, whose kernels no CPU runs; in 32 bits, too."""
    made = ModuleType(flash.PACKAGE)
    made.__spec__ = ModuleSpec(flash.PACKAGE, None)

    def whole(query: Any, key: Any, value: Any, **settings: Any) -> torch.Tensor:
        return kernels(query, key, value, [key.shape[1]] * len(key), **settings)

    def cached(query: Any, key: Any, value: Any, cache_seqlens: Any, **settings: Any) -> Any:
        assert cache_seqlens.dtype == torch.int32
        return kernels(query, key, value, cache_seqlens.tolist(), **settings)

    made.flash_attn_func, made.flash_attn_with_kvcache = whole, cached  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, flash.PACKAGE, made)
    monkeypatch.setattr(flash, "no_flash", lambda *_, **__: None)  # it refuses float32


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3_text", "mixtral", "mistral"])
def test_flash_attention_does_without_masks(
    architecture: str, tmp_path: Path, package: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(make_model(tmp_path, architecture), "eager")
    twin = copy.deepcopy(model)
    use_flash(twin)
    monkeypatch.setattr(attention, "_attend", None)
    mixed_steps(StageRunner(twin, MIXED).run, model)


def test_flash_attention_is_refused_where_it_would_be_wrong(tmp_path: Path, package: None) -> None:
    whole = load(make_model(tmp_path, "gemma2"))
    piece = Pieces([Piece(slice(0, 1), slice(0, 1), 4, None)], 0)
    states = torch.randn(1, 2, 1, 8)
    with attending(piece), pytest.raises(PreflightError, match="does not cap scores"):
        attention.attend_in_pieces(
            whole, states, states, states, torch.zeros(1, 1, 1, 0), softcap=50.0
        )
    key = torch.randn(2, 2, 4, 8)
    with pytest.raises(PreflightError, match="know nothing of s_aux"):
        flash.attend(states, key, key, torch.ones(1), {"s_aux": torch.ones(2)})


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_rows_that_branch_do_without_flash(
    architecture: str, tmp_path: Path, package: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(make_model(tmp_path, architecture), "eager")
    twin = copy.deepcopy(model)
    use_flash(twin)
    monkeypatch.setattr(flash, "attend", None)
    tokens, rows = torch.randint(5, 400, (2, 4)), torch.zeros(2, dtype=torch.int64)
    branch = replace(step("prefill", tokens, [0, 2], [2, 4]), slots=rows, scoring=BRANCH)
    if architecture == "gemma2":
        with pytest.raises(PreflightError, match="does not cap scores"):
            StageRunner(twin, MIXED).run(branch)
        return
    found, expected = (StageRunner(each, MIXED).run(branch) for each in (twin, model))
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "dtype", "branches", "why"),
    [
        ({}, "bfloat16", True, None),
        ({}, "float32", False, "16 bits"),
        ({"model_type": "gpt_oss"}, "bfloat16", False, "attention sinks of gpt_oss"),
        ({"layer_types": ["chunked_attention"]}, "bfloat16", False, "chunked"),
        ({"kv_lora_rank": 8}, "bfloat16", False, "as wide as keys"),
        ({"head_dim": 512}, "float16", False, "256 numbers at most"),
        ({"attn_logit_softcapping": 50.0}, "bfloat16", False, None),
        ({"attn_logit_softcapping": 50.0}, "bfloat16", True, "share a prefix"),
    ],
)
def test_who_can_attend_with_flash(
    changes: dict[str, Any], dtype: str, branches: bool, why: str | None
) -> None:
    config = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4} | changes
    found = no_flash(config, dtype, branches=branches)
    assert found is None if why is None else why in str(found)


@pytest.mark.parametrize("in_pieces", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "mixtral", "nemotron"])
def test_prompts_and_decoding_rows_share_a_step(
    architecture: str, in_pieces: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_pieces:
        monkeypatch.setattr(runner, "use_pieces", lambda _: False)
    model = load(make_model(tmp_path, architecture))
    mixed_steps(StageRunner(model, MIXED).run, model)


def mixed_steps(run: Callable[[Step], torch.Tensor], model: Any) -> None:
    """Hold what ``run`` gives for steps of prompts, their parts and single tokens against ``model``, row by row."""
    tokens = torch.randint(5, 400, (4, 50), generator=torch.Generator().manual_seed(1))
    # Row by row how many tokens each step feeds: whole prompts, parts of them, and single tokens, mixed.
    feeds = [[5, 0, 1, 0], [1, 30, 0, 7], [12, 1, 1, 0], [1, 1, 20, 9], [1, 1, 1, 1]]
    held = [0] * 4
    for feed in feeds:
        rows = [row for row in (2, 0, 3, 1) if feed[row]]
        widest = max(feed)
        given = [tokens[r, held[r] : held[r] + feed[r]].tolist() for r in rows]
        found = run(
            Step(
                group=0,
                kind="prefill",
                slots=torch.tensor(rows),
                tokens=torch.tensor([some + [0] * (widest - len(some)) for some in given]),
                starts=torch.tensor([held[r] for r in rows]),
                counts=torch.tensor([feed[r] for r in rows]),
            )
        )
        held = [before + more for before, more in zip(held, feed, strict=True)]
        for place, row in enumerate(rows):
            expected = model(tokens[row : row + 1, : held[row]]).logits[0, -1]
            torch.testing.assert_close(found[place], expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_heads_that_share_keys_attend_as_in_transformers(
    kv_heads: int, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    module = torch.nn.Module()
    module.num_key_value_groups = 4 // kv_heads
    lengths = [9, 1, 5]
    query = torch.randn(1, 4, 3, 16, dtype=dtype)
    key, value = torch.randn(2, 5, kv_heads, 12, 16, dtype=dtype)
    hidden = torch.arange(9)[None] >= torch.tensor(lengths)[:, None]
    flat = torch.zeros(3, 9, dtype=dtype).masked_fill_(hidden, -torch.inf).view(1, 1, 1, 27)
    piece = Piece(slice(1, 4), slice(0, 3), 9, slice(0, 27))
    with attending(Pieces([piece], 27)):
        found, _ = attention.attend_in_pieces(module, query, key, value, flat, scaling=0.3)
    for row, length in enumerate(lengths):
        own = (states[row + 1 : row + 2, :, :length] for states in (key, value))
        expected, _ = attention.sdpa_attention_forward(
            module, query[:, :, row : row + 1], *own, None, scaling=0.3
        )
        torch.testing.assert_close(
            found[:, row : row + 1], expected, atol=tolerance, rtol=tolerance
        )


def test_a_model_that_changes_the_mask_is_told_of() -> None:
    query, stored = torch.randn(1, 2, 1, 8), torch.randn(3, 2, 4, 8)
    piece = Pieces([Piece(slice(0, 1), slice(0, 1), 4, slice(0, 4))], 4)
    for mask in (None, torch.zeros(1, 1, 1, 3)):
        with attending(piece), pytest.raises(PreflightError, match="changes its attention mask"):
            attention.attend_in_pieces(torch.nn.Module(), query, stored, stored, mask)


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
