"""Pipelines without a model: real gloo ranks, the real engine and links, stages whose steps take a known time.

What a schedule must reach is then arithmetic, and so are the tokens: every stage adds one. The time is slept, or it only
passes on a `SharedClock`: then what is measured is exact, whatever else the machine does.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from launcher.engine.engine import Engine
from launcher.engine.text import Text
from launcher.measure import spans
from launcher.measure.bubble import SHARES, account, shares
from launcher.measure.spans import Recorder, clock
from launcher.measure.timeline import read_timelines
from launcher.model import link
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


def run_cases(
    cases: Sequence[Case], folder: Path, asleep: bool = True
) -> list[list[dict[str, float]]]:
    """For every case the shares of each stage; ranks are started once, cases run one after the other. Stages sleep,
    or are not ``asleep`` while their time passes.

    Raises AssertionError if a rank failed or tokens were wrong.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size, port = max(len(case.seconds) for case in cases), free_port("127.0.0.1")
    context = multiprocessing.get_context("spawn")
    ranks = [
        context.Process(target=_rank, args=(rank, port, cases, folder, asleep))
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


class SharedClock:
    """Stands in a rank in the place of the module `time`: it goes on by what its stage's steps take, and to when a
    message was sent as soon as that arrives."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    time = perf_counter

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def install(self) -> None:
        post = link.Peer.post
        spans.time = link.time = self  # type: ignore[assignment]
        link.Peer.post = lambda peer, data: _Arrival(self, data, post(peer, data))  # type: ignore[method-assign]


@dataclass
class _Arrival:
    """What a receive returns: to wait for it takes until the message was sent."""

    clock: SharedClock
    data: torch.Tensor
    work: Any

    def wait(self, patience: timedelta) -> None:
        self.work.wait(patience)
        self.clock.now = max(self.clock.now, int(self.data[0]) / 1e6)


def _rank(rank: int, port: int, cases: Sequence[Case], folder: Path, asleep: bool) -> None:
    size = max(len(case.seconds) for case in cases)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    gang = Gang.join(rank, size, b"key", 240.0)
    now: Any = time
    if not asleep:
        now, gang = SharedClock(), replace(gang, clock_offset=0.0)
        now.install()
    for number, case in enumerate(cases):
        if rank < len(case.seconds):
            header = {"rank": rank, "replica": 0, "host": "h", "attempt": "w0000-a0001"}
            header["clock"] = clock(gang.clock_offset)
            with Recorder(folder / f"{number}-{rank}", header) as recorder:
                launched = None if asleep else folder / f"{number}-launched"
                _run(case, gang, recorder, Runner(case, rank, now.sleep, launched))
    gang.leave()


def _run(case: Case, gang: Gang, recorder: Recorder, runner: Runner) -> None:
    batch = Batch(groups=case.groups, slots=SLOTS, max_length=512, prefill_chunk=64)
    stages = len(case.seconds)
    chain = Chain(gang, list(range(stages)), batch, Form(1, torch.float32))
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


class Runner:
    """A stage whose steps take their time, by ``sleep``, and add one to what it is given.

    With ``launched`` no stage but the first begins before that one has launched a step of every group, and so created
    this file: a launch that waited for the stages behind would wait for ever.
    """

    device = torch.device("cpu")

    def __init__(
        self, case: Case, stage: int, sleep: Callable[[float], None], launched: Path | None
    ) -> None:
        self._seconds, self._last = case.seconds[stage], stage == len(case.seconds) - 1
        self._sleep, self._launched, self._groups = sleep, launched, case.groups
        self._steps = 0

    def run(self, step: Step, hidden: torch.Tensor | None = None) -> torch.Tensor:
        """Hidden states (t, 1), or logits (b, VOCABULARY) with all the weight on the number reached."""
        self._sleep(self._seconds)
        self._steps += 1
        if self._launched and hidden is None and self._steps == self._groups:
            self._launched.touch()
        while self._launched and hidden is not None and not self._launched.exists():
            time.sleep(0.001)
        if hidden is None:
            pairs = zip(step.tokens, step.counts.tolist(), strict=True)
            hidden = torch.cat([row[:count] for row, count in pairs])[:, None].float()
        if not self._last:
            return hidden + 1
        reached = (hidden[step.counts.cumsum(0) - 1, 0].long() + 1) % VOCABULARY
        return torch.nn.functional.one_hot(reached, VOCABULARY).float()

    def held(self) -> dict[str, float]:
        """Nothing worth counting."""
        return {}

    def close(self) -> None:
        """Nothing to give up."""
