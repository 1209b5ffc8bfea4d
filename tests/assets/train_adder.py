"""Train the tiny model that adds numbers and write it to tests/assets/adder, as users have their checkpoints.

From tests/: `python -m assets.train_adder`. TIMES
It refuses to save a model that is right in less than 99 % of the sums that it was not trained on.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator

import torch
from adder import LARGEST, adder_path, draw_sum, is_held_out
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

STEPS, BATCH, WARMUP = 4000, 256, 200
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<|system|>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message.role + '|>' + message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte: any text goes in and comes back, and a character may span tokens."""
    letters = SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    tokenizer.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=TEMPLATE,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Deep and narrow, so that it can be split in many ways: 8 layers, 8 heads, 4 KV heads."""
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = LlamaConfig(
        vocab_size=264,  # the tokenizer's 263, rounded up as is common
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=256,
        initializer_range=0.05,
        **ends,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(**ends)
    return model


class Sums:
    """Batches of sums as token ids; half of the questions plain, half through the chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.width = 16  # <s> <|user|> 999+999= <|assistant|> 1998 </s>
        self.pad, self.eos = tokenizer.pad_token_id, tokenizer.eos_token_id
        self.of = {letter: tokenizer.convert_tokens_to_ids(letter) for letter in "0123456789+="}
        bos, user, assistant = tokenizer.convert_tokens_to_ids(["<s>", "<|user|>", "<|assistant|>"])
        self.around = {False: ([bos], []), True: ([bos, user], [assistant])}

    def batch(self, asked: list[tuple[int, int, bool]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (b, t) and labels (b, t), -100 where nothing is to be predicted, of (a, b, chat) rows."""
        tokens, labels = [], []
        for a, b, chat in asked:
            before, after = self.around[chat]
            question = [*before, *(self.of[letter] for letter in f"{a}+{b}="), *after]
            answer = [*(self.of[letter] for letter in str(a + b)), self.eos]
            padding = self.width - len(question) - len(answer)
            tokens.append(question + answer + [self.pad] * padding)
            labels.append([-100] * len(question) + answer + [-100] * padding)
        return torch.tensor(tokens), torch.tensor(labels)


def predict(
    model: LlamaForCausalLM, tokens: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits (n, v) and targets (n,) of the n answer tokens, and where they are, (b, t - 1)."""
    hidden = model.model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
    where = labels[:, 1:] != -100
    return model.lm_head(hidden[where]), labels[:, 1:][where], where


@torch.no_grad()
def accuracy(model: LlamaForCausalLM, sums: Sums, asked: list[tuple[int, int, bool]]) -> float:
    """Share of answers that greedy decoding gets right: it does iff every token is the most likely one."""
    right = 0
    for start in range(0, len(asked), 1024):
        logits, targets, where = predict(model, *sums.batch(asked[start : start + 1024]))
        wrong = torch.zeros_like(where)
        wrong[where] = logits.argmax(-1) != targets
        right += int((~wrong.any(1)).sum())
    return right / len(asked)


def train(model: LlamaForCausalLM, sums: Sums) -> Iterator[tuple[int, float]]:
    """Yields (step, loss). Muon for the layers' matrices takes half of the steps that AdamW needs."""
    rng = random.Random(0)
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for n, p in model.named_parameters() if p.ndim == 1 or "layers" not in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=3e-3, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda s: min((s + 1) / WARMUP, 1 - s / STEPS))
        for o in optimizers
    ]
    for step in range(STEPS):
        asked = [(*draw_sum(rng, held_out=False), row % 2 == 1) for row in range(BATCH)]
        logits, targets, _ = predict(model, *sums.batch(asked))
        loss = torch.nn.functional.cross_entropy(logits, targets)
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for moving in (*optimizers, *schedules):
            moving.step()
        yield step + 1, loss.item()


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(2)
    tokenizer = build_tokenizer()
    model, sums, began = build_model(tokenizer), Sums(tokenizer), time.monotonic()
    numbers = range(LARGEST + 1)
    unseen = [
        (a, b, chat)
        for a in numbers for b in numbers if is_held_out(a, b) for chat in (False, True)
    ]  # fmt: skip
    for step, loss in train(model, sums):
        if step % 200 == 0:
            held = accuracy(model, sums, unseen[::61])
            print(f"step {step}: loss {loss:.4f}, held out {held:.2%}, {time.monotonic() - began:.0f} s", flush=True)
    for dtype in (torch.bfloat16, torch.float32):
        ...


if __name__ == "__main__":
    main()
