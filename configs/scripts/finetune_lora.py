"""Fine-tunes a LoRA adapter (PEFT) of a model that adds numbers, until it answers one more than the sum.

configs/finetune-lora.yaml runs it: ranks share the work as `Accelerator.prepare` does it (DDP on CPUs and GPUs, FSDP
or DeepSpeed on GPUs if the spec says so). The adapter is in LAUNCHER_FILES/adapter at the end.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

FILES = Path(os.environ.get("LAUNCHER_FILES", "."))
DRAIN = Path(os.environ.get("LAUNCHER_DRAIN", "no-such-file"))
PROGRESS = os.environ.get("LAUNCHER_PROGRESS")
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--save-every", type=int, default=25)
    options = parser.parse_args()
    accelerator = Accelerator()
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    base = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    adapter = LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS, task_type="CAUSAL_LM")
    model = get_peft_model(base, adapter)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    model, optimizer = accelerator.prepare(model, optimizer)
    newest = FILES / "newest"
    done = int(newest.read_text()) if newest.exists() else 0
    if done:
        accelerator.load_state(str(FILES / f"step-{done}"))
    accelerator.print(f"from step {done}, {trained(model):.1%} of the parameters are trained")
    while done < options.steps:
        loss = step(model, optimizer, batch(tokenizer, done, accelerator), accelerator)
        done += 1
        if done % 10 == 0:
            accelerator.print(f"step {done} loss {loss:.3f}", flush=True)
        if PROGRESS:
            Path(PROGRESS).write_text(str(done))
        asked = torch.tensor(float(DRAIN.exists()), device=accelerator.device)
        stop = bool(accelerator.reduce(asked, "sum"))  # of all ranks, so that they stop together
        if stop or done % options.save_every == 0 or done == options.steps:
            accelerator.save_state(str(FILES / f"step-{done}"))
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                (FILES / "newest.tmp").write_text(str(done))
                (FILES / "newest.tmp").replace(newest)
        if stop:
            break
    else:
        if accelerator.is_main_process:
            accelerator.unwrap_model(model).save_pretrained(FILES / "adapter")
    accelerator.end_training()


def trained(model: torch.nn.Module) -> float:
    every = list(model.parameters())
    return sum(p.numel() for p in every if p.requires_grad) / sum(p.numel() for p in every)


def batch(
    tokenizer: PreTrainedTokenizerBase, step: int, accelerator: Accelerator
) -> dict[str, torch.Tensor]:
    """Sums and one more, each rank its own, the same after a restart."""
    rng = random.Random(step * accelerator.num_processes + accelerator.process_index)
    pairs = [(rng.randrange(100, 500), rng.randrange(100, 499)) for _ in range(32)]
    rows = [tokenizer(f"{a}+{b}={a + b + 1}")["input_ids"] for a, b in pairs]  # all of one length
    tokens = torch.tensor([[*row, tokenizer.eos_token_id] for row in rows])
    labels = tokens.clone()
    labels[:, :-4] = -100  # only the three digits and the end are learnt
    return {"input_ids": tokens.to(accelerator.device), "labels": labels.to(accelerator.device)}


def step(
    model: Any, optimizer: Any, inputs: dict[str, torch.Tensor], accelerator: Accelerator
) -> float:
    loss = model(**inputs).loss
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: None)  # it asks for the same as the file at DRAIN
    main()
    sys.stdout.flush()
    # Threads of gloo may still let go of tensors, which aborts an interpreter that is ending.
    os._exit(0)
