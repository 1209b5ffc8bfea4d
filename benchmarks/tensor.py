"""Tensor parallelism of a llama of 88M over ranks with one thread each, as ratios in one run.

    python -m benchmarks.tensor [--dtype float32|bfloat16] [--degree 2] [--rounds 5]

- prefill: 8 prompts of 256 tokens and one new token each, against the unsplit model on one thread;
- decode: 8 prompts of 16 tokens and 64 new tokens each, against transformers' own `generate` at the same degree
  and against the unsplit model.

`package` is backend tensor_parallel: the same number of shards, in threads of the first rank's process.

Contenders take turns over the same rows; the figure is the median over the rounds of the ratio within a round.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

from benchmarks.engine import TokenText
from benchmarks.models import build
from launcher.engine.engine import Engine
from launcher.job.spec import JobSpec
from launcher.measure.spans import NullRecorder
from launcher.model.gang import Gang
from launcher.plan.checkpoint import Checkpoint
from launcher.plan.machines import Machines
from launcher.records import Demand, Failure, Generation, Request, Sampling
from launcher.runtime.network import free_port
from launcher.strategies import tensor

ROWS = 8
CONTENDERS = ("tensor", "library", "package", "unsplit")
BACKENDS = {"package": "tensor_parallel"}
Outputs = list[list[int]]


@dataclass(frozen=True)
class Task:
    """``rows`` prompts of ``prompt`` tokens, ``new`` tokens more of each."""

    name: str
    prompt: int
    new: int

    def prompts(self) -> list[list[int]]:
        draw = torch.Generator().manual_seed(0)
        return torch.randint(1, 16000, (ROWS, self.prompt), generator=draw).tolist()

    @property
    def tokens(self) -> int:
        """What the rate counts."""
        return ROWS * (self.prompt if self.new == 1 else self.new)


TASKS = (Task("prefill", 256, 1), Task("decode", 16, 64))


@dataclass(frozen=True)
class Work:
    """What every rank is told."""

    model: Path
    dtype: str
    degree: int
    rounds: int


def run_ours(work: Work, gang: Gang, name: str, task: Task) -> tuple[float, Outputs]:
    """Seconds and tokens of the engine as contender ``name``, loading not counted; nothing on ranks that serve."""
    degree = 1 if name == "unsplit" else work.degree
    options = {"backend": BACKENDS.get(name, "transformers")}
    spec = JobSpec.model_validate(
        {
            "name": "benchmark",
            "model": {"path": str(work.model), "dtype": work.dtype},
            "parallel": {"strategy": "tensor", "tensor": degree, "options": options},
            "batch": {"slots": ROWS, "max_length": task.prompt + task.new},
            "input": {"path": "none"},
        }
    )
    machines = Machines("cpu", 1, 0, None, 2**36)
    demand = Demand(ROWS, task.prompt, task.new)
    plan = tensor.place(Checkpoint.read(work.model), machines, spec, demand)
    model: Any = tensor.load(plan.placements[gang.rank], plan, spec, NullRecorder(), gang)
    if gang.rank:
        model.serve()
        return 0.0, []
    requests = iter(
        Request(row, str(row), Sampling(max_new_tokens=task.new), " ".join(map(str, prompt)))
        for row, prompt in enumerate(task.prompts())
    )
    outputs: Outputs = [[] for _ in range(ROWS)]

    def emit(row: Generation | Failure) -> None:
        assert isinstance(row, Generation), row
        outputs[row.index] = [int(token) for token in row.text.split()]

    engine = Engine(model, TokenText(plan.batch.max_length), plan.batch)
    started = time.perf_counter()
    engine.run(lambda: next(requests, None), emit)
    took = time.perf_counter() - started
    model.close()
    return took, outputs


def run_library(model: Any, task: Task) -> tuple[float, Outputs]:
    """The same of transformers' generate, which every rank calls."""
    tokens = torch.tensor(task.prompts())
    started = time.perf_counter()
    made = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=task.new,
        do_sample=False,
    )
    return time.perf_counter() - started, made[:, task.prompt :].tolist()


def rank_main(rank: int, port: int, work: Work, results: Any) -> None:
    """One rank. While a contender without it runs, it waits."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    gang = Gang.join(rank, work.degree, b"key", 600.0)
    library = AutoModelForCausalLM.from_pretrained(
        work.model,
        dtype=getattr(torch, work.dtype),
        distributed_config=DistributedConfig(tp_size=work.degree),
    )
    for turn in range(work.rounds + 1):  # the first one warms up
        for task in TASKS:
            for name in CONTENDERS:
                torch.distributed.barrier()
                if name == "library":
                    found = run_library(library, task)
                elif name == "tensor" or rank == 0:
                    found = run_ours(work, gang, name, task)
                if rank == 0 and turn:
                    results.put((turn, task, name, *found))
    gang.leave()


def report(work: Work, found: list[tuple[int, Task, str, float, Outputs]]) -> None:
    """Print every contender's rate and the ratio of ours to it."""
    for task in TASKS:
        mine = [one for one in found if one[1] == task]
        seconds = {(turn, name): took for turn, _, name, took, _ in mine}
        outputs = {name: tokens for _, _, name, _, tokens in mine}
        for name in CONTENDERS:
            turns = range(1, work.rounds + 1)
            ratio = statistics.median(seconds[t, name] / seconds[t, "tensor"] for t in turns)
            rate = statistics.median(task.tokens / seconds[t, name] for t in turns)
            pairs = zip(outputs[name], outputs["tensor"], strict=True)
            same = sum(one == other for one, other in pairs)
            print(
                f"{task.name:8} {name:8} {rate:7.1f} tok/s   tensor / it: {ratio:5.2f}"
                f"   rows as tensor {same}/{ROWS}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--degree", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        build("88m").to(getattr(torch, options.dtype)).save_pretrained(folder)
        work = Work(Path(folder), options.dtype, options.degree, options.rounds)
        context = multiprocessing.get_context("spawn")
        results: Any = context.Queue()
        port = free_port("127.0.0.1")
        ranks = [
            context.Process(target=rank_main, args=(rank, port, work, results))
            for rank in range(options.degree)
        ]
        for process in ranks:
            process.start()
        found = [results.get() for _ in range(work.rounds * len(TASKS) * len(CONTENDERS))]
        for process in ranks:
            process.join()
        report(work, found)


if __name__ == "__main__":
    main()
