"""Real gloo ranks that each load a shard of some models, and leave what they computed and hold."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from launcher.job.spec import ModelSpec
from launcher.model.gang import Gang
from launcher.model.group import TensorGroup
from launcher.model.local import Runner
from launcher.model.packed import pack_linears
from launcher.model.runner import StageRunner
from launcher.model.sharding import Sharding
from launcher.model.stage import load_stage
from launcher.model.step import Step
from launcher.model.weights import load_config
from launcher.plan.plan import Batch
from launcher.runtime.generate import storage_bytes
from launcher.runtime.network import free_port

COUNTS = (12, 20, 9)  # tokens of the prompts
NEW = 6
BATCH = Batch(groups=1, slots=len(COUNTS), max_length=40, prefill_chunk=64)


@dataclass
class Shard:
    """What one rank says of one model: the logits of every step (NEW, b, vocabulary), the greedy tokens (b, NEW),
    and the bytes that it holds and that it had read from storage."""

    logits: torch.Tensor
    tokens: torch.Tensor
    weights_bytes: int
    read_bytes: int


def drive(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and greedy tokens after prompts that are the same for every model."""
    return drive_runner(StageRunner(model, BATCH))


def drive_runner(runner: Runner) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of what runs a model."""
    draw = torch.Generator().manual_seed(0)
    counts, slots = torch.tensor(COUNTS), torch.arange(len(COUNTS))
    prompts = torch.randint(2, 400, (len(COUNTS), max(COUNTS)), generator=draw)
    step = Step(0, "prefill", slots, prompts, torch.zeros_like(counts), counts)
    logits, tokens = [], []
    for done in range(NEW):
        logits.append(runner.run(step).clone())
        tokens.append(logits[-1].argmax(dim=-1))
        ones = torch.ones_like(counts)
        step = Step(0, "decode", slots, tokens[-1][:, None], counts + done, ones)
    return torch.stack(logits), torch.stack(tokens, dim=1)


def run_shards(paths: Sequence[Path], degree: int, folder: Path) -> list[list[Shard]]:
    """By model, then by rank; ranks are started once. Raises AssertionError if one of them failed."""
    context, port = multiprocessing.get_context("spawn"), free_port("127.0.0.1")
    ranks = [
        context.Process(target=_rank, args=(rank, degree, port, list(paths), folder))
        for rank in range(degree)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0] * degree
    return [
        [torch.load(folder / f"{n}-{rank}", weights_only=False) for rank in range(degree)]
        for n in range(len(paths))
    ]


def _rank(rank: int, degree: int, port: int, paths: list[Path], folder: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    gang = Gang.join(rank, degree, b"key", 240.0)
    group = TensorGroup.join(gang, degree)
    apart = replace(group, names=tuple(f"rank {n} on host {n}" for n in range(degree)))
    for number, path in enumerate(paths):
        before = storage_bytes()
        spec = ModelSpec(path=str(path), dtype="float32")
        layers = load_config(spec).num_hidden_layers
        model = load_stage(spec, "float32", (0, layers - 1), layers, "cpu", Sharding(group))
        weights = sum(parameter.nbytes for parameter in model.parameters())
        read = storage_bytes() - before
        # Ranks of several hosts load the same, in another way.
        other = load_stage(spec, "float32", (0, layers - 1), layers, "cpu", Sharding(apart))
        for one, same in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(one, same)
        pack_linears(model)
        torch.save(Shard(*drive(model), weights, read), folder / f"{number}-{rank}")
    gang.leave()
