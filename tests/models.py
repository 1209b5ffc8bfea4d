"""Small random models with a tokenizer, saved to a directory: one per architecture that tests compare.

The weights are large enough that the next token depends on all that came before, so a wrong mask,
position or cache row shows as a wrong token.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

ARCHITECTURES = (
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma2",
    "gemma3_text",
    "gpt_neox",
    "mixtral",
    "phi3",
)
WINDOW = 9  # of the sliding layers: smaller than the sequences that tests generate

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_COMMON: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_GROUPED = {"num_key_value_heads": 2, "head_dim": 16}
_OWN: dict[str, dict[str, Any]] = {
    "llama": {**_GROUPED},
    "qwen2": {"num_key_value_heads": 2},
    "nemotron": {**_GROUPED},
    "qwen3": {**_GROUPED},
    "mistral": {**_GROUPED, "sliding_window": WINDOW},
    "gemma2": {**_GROUPED, "sliding_window": WINDOW, "query_pre_attn_scalar": 16},
    # Every third layer attends to everything, so that stages differ in their kinds of layers.
    "gemma3_text": {
        **_GROUPED,
        "sliding_window": WINDOW,
        "sliding_window_pattern": 3,
        "query_pre_attn_scalar": 16,
    },
    "gpt_neox": {"initializer_range": 0.6},
    "phi3": {"num_key_value_heads": 2},
    "mixtral": {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
}
_TIED: dict[str, bool] = {}


def make_model(path: Path, architecture: str, *, seed: int = 0, **changes: Any) -> Path:
    """Save a random fp32 model of ``architecture`` with its tokenizer in ``path``; ``changes`` go to its config."""
    config = small_config(architecture, **changes)
    model = random_model(config, seed)
    # No test is to meet eos by chance: those that are about it name their own token.
    model.generation_config.eos_token_id = config.eos_token_id
    model.save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def small_config(architecture: str, **changes: Any) -> Any:
    """The config of such a model."""
    own: dict[str, Any] = {"tie_word_embeddings": _TIED.get(architecture, False)}
    own |= _OWN.get(architecture, {}) | changes
    return AutoConfig.for_model(architecture, **(_COMMON | own))


def random_model(config: Any, seed: int = 0) -> PreTrainedModel:
    """A model with random weights, norms and biases included, in fp32 and in eval mode."""
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@cache
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most 400 tokens with bos, eos and a chat template; bos is added to plain text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        chat_template=CHAT_TEMPLATE,
    )


@cache
def prefix_space_tokenizer() -> PreTrainedTokenizerFast:
    """A BPE in sentencepiece's manner: words carry a leading space, bytes that it does not know fall back."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += ["▁", *"abcdefghijklmnopqrstuvwxyz.", "▁t", "▁th", "▁the", "an", "▁an"]
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("a", "n"), ("▁", "an")]
    tokenizer = Tokenizer(
        models.BPE(
            {token: index for index, token in enumerate(tokens)},
            merges,
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


_CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "A pipeline has stages; a stage has layers; a layer has weights.",
    "Generations come back in the order of the prompts, whatever finished first.",
    "0123456789 38+45=83 17+25=42 éàü 你好 🙂",
]
