"""`launcher bench attention`: eager, sdpa and flash attention, with and without KV cache, as transformers runs them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from launcher import environ
from launcher.errors import UsageError

KINDS = ("eager", "sdpa", "flash_attention_2")
ROUNDS = 3
SMALL = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 1024,
}


def compare(
    lengths: Sequence[int], new_tokens: int, model: Path | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Of one sequence, for each kind and each length of its prompt: ``prefill_s`` until the first new token, and
    ``tokens_per_s`` of ``new_tokens`` with the KV cache kept and with all computed anew for each token.

    ``model`` is a checkpoint's folder or one with a config alone; None: a small random model. Kinds that can't run
    here are in ``unavailable`` with the reason. Raises UsageError for a model that is none, and lengths beyond it.
    """
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(environ.cpus())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = _config(model, max(lengths) + new_tokens)
    found: list[dict[str, Any]] = []
    unavailable: dict[str, str] = {}
    for kind in KINDS:
        if reason := _why_not(kind, device.type):
            unavailable[kind] = reason
            continue
        made = _load(model, config, kind, dtype).to(device).eval()
        for length in lengths:
            say(f"{kind}, {length} tokens")
            found.append(
                {"attention": kind, "length": length, **_measure(made, length, new_tokens)}
            )
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "model": str(model or "small, random"),
        "dtype": str(dtype).removeprefix("torch."),
        "new_tokens": new_tokens,
        "results": found,
        "unavailable": unavailable,
    }


def _config(model: Path | None, longest: int) -> Any:
    from transformers import AutoConfig, LlamaConfig

    if model is None:
        return LlamaConfig(**SMALL, max_position_embeddings=longest)  # type: ignore[arg-type]
    try:
        config = AutoConfig.from_pretrained(model, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"no model here: {str(error).splitlines()[0]}", where=f"--model {model}"
        ) from None
    most = getattr(config.get_text_config(), "max_position_embeddings", longest)
    if longest > most:
        raise UsageError(
            f"{longest} tokens with the new ones, and the model knows {most} positions",
            where="--lengths",
        )
    return config


def _load(model: Path | None, config: Any, kind: str, dtype: Any) -> Any:
    from transformers import AutoModelForCausalLM

    if model is not None and any(model.glob("*.safetensors")):
        return AutoModelForCausalLM.from_pretrained(
            model, dtype=dtype, attn_implementation=kind, local_files_only=True
        )
    return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=kind)


def _why_not(kind: str, device: str) -> str | None:
    if kind != "flash_attention_2":
        return None
    from transformers.utils import is_flash_attn_2_available

    if device != "cuda":
        return "it runs on CUDA GPUs alone, and there is none here"
    return None if is_flash_attn_2_available() else "the package flash-attn is not installed"


def _measure(model: Any, length: int, new_tokens: int) -> dict[str, Any]:
    import torch

    prompt = torch.ones(1, length, dtype=torch.int64, device=model.device)

    def seconds(count: int, cached: bool) -> float:
        found = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                min_new_tokens=count,
                max_new_tokens=count,
                use_cache=cached,
                pad_token_id=0,
            )
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            found.append(time.perf_counter() - began)
        return min(found)

    first = seconds(1, True)
    rates = {cached: new_tokens / seconds(new_tokens, cached) for cached in (True, False)}
    return {
        "prefill_s": first,
        "tokens_per_s": {"cache": rates[True], "no_cache": rates[False]},
    }
