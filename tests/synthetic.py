"""Pipelines without a model: real gloo ranks, the real engine and links, stages that sleep for a known time.

What a schedule must reach is then arithmetic, and so are the tokens: every stage adds one.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from launcher.engine.engine import Engine
from launcher.engine.text import Text
from launcher.measure.bubble import SHARES, account, shares
from launcher.measure.spans import Recorder, clock
from launcher.measure.timeline import read_timelines
from launcher.model.gang import Gang
from launcher.model.message import Form
from launcher.model.pipeline import Chain, PipelineStepModel, ServingStage
from launcher.model.step import Step
from launcher.plan.plan import Batch
from launcher.records import Failure, Generation, Request, Sampling
from launcher.runtime.network import free_port

VOCABULARY = 1000
SLOTS = 2


@dataclass(frozen=True)
class Case:
    """A pipeline to run: seconds per stage, groups, steps per group, and the schedule of the engine."""

    seconds: tuple[float, ...]
    groups: int
    schedule: str
    steps: int

    @property
    def ideal(self) -> float:
        """Utilisation of equal stages, as it is when the run is long."""
        stages, groups = len(self.seconds), self.groups
        if self.schedule == "gpipe":
            return groups / (groups + stages - 1)
        return min(1.0, groups / stages)

    @property
    def expected(self) -> float:
        """Utilisation of equal stages over a window that holds filling and draining as well."""
        stages, groups = len(self.seconds), self.groups
        if self.schedule == "gpipe":
            return self.ideal
        last = groups - 1 if groups < stages else stages - 1
        return self.steps * groups / (self.steps * max(groups, stages) + last)

    def slower(self, factor: int) -> Case:
        """Stages that take longer, and fewer steps of them."""
        seconds = tuple(factor * each for each in self.seconds)
        return replace(self, seconds=seconds, steps=max(4, self.steps * 2 // (factor + 1)))


def run_cases(cases: Sequence[Case], folder: Path) -> list[list[dict[str, float]]]:
    """For every case the shares of each stage; ranks are started once, cases run one after the other.

    Raises AssertionError if a rank failed or tokens were wrong.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size, port = max(len(case.seconds) for case in cases), free_port("127.0.0.1")
    context = multiprocessing.get_context("spawn")
    ranks = [
        context.Process(target=_rank, args=(rank, size, port, cases, folder))
        for rank in range(size)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0] * size
    return [_shares(folder, number, len(case.seconds)) for number, case in enumerate(cases)]


def mean(stages: list[dict[str, float]], share: str = "busy") -> float:
    assert share in SHARES
    return sum(stage[share] for stage in stages) / len(stages)


def _shares(folder: Path, number: int, stages: int) -> list[dict[str, float]]:
    accounts = account(read_timelines(folder / f"{number}-{rank}" for rank in range(stages)))
    return [shares(accounts[stage, stage]) for stage in range(stages)]


def _rank(rank: int, size: int, port: int, cases: Sequence[Case], folder: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    gang = Gang.join(rank, size, b"key", 60.0)
    for number, case in enumerate(cases):
        if rank < len(case.seconds):
            header = {"rank": rank, "replica": 0, "host": "h", "attempt": "w0000-a0001"}
            header["clock"] = clock(gang.clock_offset)
            with Recorder(folder / f"{number}-{rank}", header) as recorder:
                _run(case, gang, recorder)
    gang.leave()


def _run(case: Case, gang: Gang, recorder: Recorder) -> None:
    batch = Batch(groups=case.groups, slots=SLOTS, max_length=512, prefill_chunk=64)
    stages = len(case.seconds)
    chain = Chain(gang, list(range(stages)), batch, Form(1, torch.float32))
    runner = SleepingRunner(case.seconds[gang.rank], chain.last)
    if gang.rank:
        ServingStage(runner, chain, recorder).serve()
        return
    model = PipelineStepModel(runner, chain, recorder)
    rows = case.groups * SLOTS
    found = answers(Engine(model, NumberText(), batch, case.schedule == "gpipe"), rows, case.steps)
    model.close()
    wanted = {
        row: " ".join(str((row + (at + 1) * stages) % VOCABULARY) for at in range(case.steps))
        for row in range(rows)
    }
    assert found == wanted, f"{case}: {found}"


def answers(engine: Engine, rows: int, steps: int) -> dict[int, str]:
    """The text of each row: its prompt is as many tokens as its number has digits, the last one its number."""
    requests = iter(
        Request(row, str(row), Sampling(max_new_tokens=steps), " ".join([*str(row)[1:], str(row)]))
        for row in range(rows)
    )
    found: dict[int, str] = {}

    def emit(record: Generation | Failure) -> None:
        assert isinstance(record, Generation), record
        found[record.index] = record.text

    assert engine.run(lambda: next(requests, None), emit)
    return found


class NumberText(Text):
    """Prompts that are tokens already, and generations that stay tokens."""

    def __init__(self) -> None:
        self.eos, self.context = frozenset(), 512

    def encode(self, request: Request) -> list[int]:
        assert request.prompt is not None
        return [int(token) for token in request.prompt.split()]

    def decode(self, tokens: list[int]) -> str:
        return " ".join(map(str, tokens))


class SleepingRunner:
    """A stage that takes ``seconds`` per step and adds one to what it is given."""

    device = torch.device("cpu")

    def __init__(self, seconds: float, last: bool) -> None:
        self._seconds, self._last = seconds, last

    def run(self, step: Step, hidden: torch.Tensor | None = None) -> torch.Tensor:
        """Hidden states (t, 1), or logits (b, VOCABULARY) with all the weight on the number reached."""
        time.sleep(self._seconds)
        if hidden is None:
            pairs = zip(step.tokens, step.counts.tolist(), strict=True)
            hidden = torch.cat([row[:count] for row, count in pairs])[:, None].float()
        if not self._last:
            return hidden + 1
        reached = (hidden[step.counts.cumsum(0) - 1, 0].long() + 1) % VOCABULARY
        return torch.nn.functional.one_hot(reached, VOCABULARY).float()

    def close(self) -> None:
        """Nothing to give up."""
