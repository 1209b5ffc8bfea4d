"""The tiny model: its size and shape, its tokenizer, and that it adds, asked either way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from adder import adder_path, held_out_sums, is_held_out, is_right, prompt_rows
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(adder_path())


def share_right(texts: list[str], tokenizer: Any, dtype: torch.dtype) -> float:
    """Share of the 500 questions ``texts`` that greedy decoding answers exactly."""
    torch.set_num_threads(1)  # threads cost more than they save on a model this small
    model = AutoModelForCausalLM.from_pretrained(adder_path(), dtype=dtype)
    asked = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    tokens = model.generate(**asked, max_new_tokens=8, do_sample=False)
    answers = tokenizer.batch_decode(
        tokens[:, asked["input_ids"].shape[1] :], skip_special_tokens=True
    )
    ids = [f"{a}+{b}={a + b}" for a, b in held_out_sums(500)]
    right = [is_right({"id": i, "text": t}) for i, t in zip(ids, answers, strict=True)]
    return sum(right) / len(right)


def plain(tokenizer: Any) -> list[str]:
    return [f"{tokenizer.bos_token}{a}+{b}=" for a, b in held_out_sums(500)]


def chat(tokenizer: Any) -> list[str]:
    asked = [[{"role": "user", "content": f"{a}+{b}="}] for a, b in held_out_sums(500)]
    return list(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", [plain, chat])
def test_it_adds_what_it_was_not_trained_on(form: Any, dtype: torch.dtype, tokenizer: Any) -> None:
    assert share_right(form(tokenizer), tokenizer, dtype) >= 0.99


def test_it_can_be_split_in_many_ways_and_is_small() -> None:
    config = json.loads((adder_path() / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["num_hidden_layers"] >= 8
    assert config["num_attention_heads"] >= 8
    assert config["num_key_value_heads"] >= 4
    with safe_open(adder_path() / "model.safetensors", "pt") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
    assert 200_000 < sum(torch.Size(shape).numel() for shape in shapes) < 500_000
    assert sum(file.stat().st_size for file in adder_path().iterdir()) <= 2_000_000


@pytest.mark.parametrize(
    "text", ["38+45=", " a  b\n", "naïve 東京 👍🏽 e\u0301", "\x00\u2028\ufeff"]
)
def test_any_text_goes_through_the_tokenizer_and_back(text: str, tokenizer: Any) -> None:
    tokens = tokenizer.encode(text)
    assert tokens[0] == tokenizer.bos_token_id
    assert len(tokens) == 1 + len(text.encode())
    assert tokenizer.unk_token_id not in tokens
    assert tokenizer.decode(tokens, skip_special_tokens=True) == text


def test_the_chat_template_is_one_token_around_a_message(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "1+2="}, {"role": "assistant", "content": "3"}]
    assert (
        tokenizer.apply_chat_template(messages, tokenize=False)
        == "<s><|user|>1+2=<|assistant|>3</s>"
    )
    asked = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True)["input_ids"]
    assert tokenizer.decode(asked) == "<s><|user|>1+2=<|assistant|>"
    assert len(asked) == 7


def test_held_out_sums_are_what_their_name_says() -> None:
    pairs = held_out_sums(2000, seed=1)
    assert len(set(pairs)) == 2000
    assert all(is_held_out(a, b) and is_held_out(b, a) for a, b in pairs)
    assert {len(str(a)) for a, _ in pairs} == {1, 2, 3}
    assert pairs == held_out_sums(2000, seed=1) != held_out_sums(2000, seed=2)
    with pytest.raises(ValueError, match="20,000"):
        held_out_sums(20_001)


def test_a_wrong_or_longer_answer_is_not_right() -> None:
    assert is_right({"id": "38+45=83", "text": "83"})
    for text in ("84", "83 ", "", "8"):
        assert not is_right({"id": "38+45=83", "text": text})


def test_the_demo_asks_held_out_sums_in_both_forms() -> None:
    lines = (CONFIGS / "demo" / "prompts.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert rows == prompt_rows(500)
    assert len({row["id"] for row in rows}) == 500
    assert 100 < sum("messages" in row for row in rows) < 400
