"""Trains a small language model, sharded over all ranks with FSDP, and goes on from its own checkpoints.

configs/train-fsdp.yaml runs it on two CPU ranks. `Accelerator.prepare` shards models on GPUs alone, so what it would
do is written out here: the same lines then run on a CPU.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin, set_seed
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

# What the launcher says to a script; without it the script runs as well.
FILES = Path(os.environ.get("LAUNCHER_FILES", "."))
DRAIN = Path(os.environ.get("LAUNCHER_DRAIN", "no-such-file"))
PROGRESS = os.environ.get("LAUNCHER_PROGRESS")
PERIOD = 7  # of the sequence that is to be learnt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--save-every", type=int, default=20)
    options = parser.parse_args()
    accelerator = Accelerator()
    set_seed(0)
    model = shard(LlamaForCausalLM(small()), accelerator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    done = load(model, optimizer)
    accelerator.print(f"from step {done}: {sharded(model):.0%} of the weights on each rank")
    while done < options.steps:
        loss = train(model, optimizer, batch(done, accelerator))
        done += 1
        accelerator.print(f"step {done} loss {loss:.3f}", flush=True)
        if PROGRESS:
            Path(PROGRESS).write_text(str(done))
        stop = asked_to_stop(accelerator)
        if stop or done % options.save_every == 0 or done == options.steps:
            save(model, optimizer, done, accelerator)
        if stop:
            break
    accelerator.end_training()


def small() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=32,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=64,
    )


def shard(model: LlamaForCausalLM, accelerator: Accelerator) -> LlamaForCausalLM:
    """Every layer a unit of its own, as the spec's `accelerate.fsdp` asks for."""
    fsdp = FullyShardedDataParallelPlugin()
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    again = bool(fsdp.reshard_after_forward)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=again)
    return fully_shard(model, mesh=mesh, reshard_after_forward=again)


def sharded(model: LlamaForCausalLM) -> float:
    own = sum(p.to_local().numel() for p in model.parameters())
    return own / sum(p.numel() for p in model.parameters())


def batch(step: int, accelerator: Accelerator) -> torch.Tensor:
    """Each rank its own, the same after a restart."""
    random = torch.Generator().manual_seed(
        step * accelerator.num_processes + accelerator.process_index
    )
    starts = torch.randint(PERIOD, (8, 1), generator=random)
    return ((starts + torch.arange(32)) % PERIOD).to(accelerator.device)


def train(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, tokens: torch.Tensor) -> float:
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def asked_to_stop(accelerator: Accelerator) -> bool:
    """All ranks answer alike: one that stops alone would leave the others in a collective."""
    asked = torch.tensor(float(DRAIN.exists()), device=accelerator.device)
    return bool(accelerator.reduce(asked, "sum"))


def save(
    model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, done: int, accelerator: Accelerator
) -> None:
    """Each rank its own part. The name of the newest checkpoint changes when all of it is there."""
    weights, state = get_state_dict(model, optimizer)
    checkpoint.save({"model": weights, "optimizer": state}, checkpoint_id=FILES / f"step-{done}")
    if accelerator.is_main_process:
        (FILES / "newest.tmp").write_text(str(done))
        (FILES / "newest.tmp").replace(FILES / "newest")


def load(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer) -> int:
    """Steps that the newest checkpoint had done; 0 if there is none."""
    newest = FILES / "newest"
    if not newest.exists():
        return 0
    done = int(newest.read_text())
    weights, state = get_state_dict(model, optimizer)
    kept = {"model": weights, "optimizer": state}
    checkpoint.load(kept, checkpoint_id=FILES / f"step-{done}")
    set_state_dict(
        model, optimizer, model_state_dict=kept["model"], optim_state_dict=kept["optimizer"]
    )
    return done


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: None)  # it asks for the same as the file at DRAIN
    main()
    sys.stdout.flush()
    # Threads of gloo may still let go of tensors, which aborts an interpreter that is ending.
    os._exit(0)
