"""The tasks `generate` and `score` on one rank: rows from the ledger through the engine into the journal."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from launcher import strategies
from launcher.engine.choices import Choices
from launcher.engine.engine import Engine
from launcher.engine.loop import Loop
from launcher.engine.scoring import ScoreEngine
from launcher.engine.text import Text
from launcher.input.prompts import InputIndex
from launcher.input.results import Record
from launcher.job.spec import JobSpec
from launcher.ledger import Claims, Journal
from launcher.logs import get_logger
from launcher.measure.spans import Recorder, clock
from launcher.model.gang import Gang
from launcher.model.step import Server, StepModel, SweepModel
from launcher.plan.plan import Placement, Plan
from launcher.records import Attempt, Failure, Request
from launcher.run import Run
from launcher.runtime import process
from launcher.runtime.heartbeat import Heartbeat

ENGINES: dict[str, type[Loop[Any, Any]]] = {"generate": Engine, "score": ScoreEngine}


@dataclass
class Rows:
    """Where the engine's requests come from and its answers go. A row that can't be read is answered at once."""

    claims: Claims
    index: InputIndex
    journal: Journal
    beat: Heartbeat
    waiting: list[int] = field(default_factory=list)  # rows of the chunk at hand, the next one last

    def pull(self) -> Request | None:
        """The next request that is this rank's to do; None when no chunk is left."""
        while True:
            while not self.waiting:
                chunk = self.claims.next()
                if chunk is None:
                    return None
                self.waiting = list(reversed(chunk.rows))
            row = self.index.request(self.waiting.pop())
            if isinstance(row, Request):
                return row
            self.emit(row)

    def emit(self, record: Record) -> None:
        """Hand a finished row to the journal."""
        self.journal.append(record)
        if isinstance(record, Failure):
            self.beat.status.rows_failed += 1
        self.beat.status.rows_done += 1


def generate(
    run: Run, spec: JobSpec, plan: Plan, placement: Placement, beat: Heartbeat, gang: Gang
) -> None:
    """Load this rank's placement and work until no row is left or the run is drained. The first rank of a
    replica runs the engine and journals, the others serve it."""
    attempt, rank = Attempt.parse(beat.status.attempt), placement.rank
    header = {
        "rank": rank,
        "replica": placement.replica,
        "host": beat.status.host,
        "attempt": attempt.name,
        "clock": clock(gang.clock_offset),
    }
    with Recorder(run.timeline(attempt, rank), header) as recorder:
        if rank != plan.ranks_of(placement.replica)[0]:
            _serve(_load(spec, plan, placement, beat, recorder, gang), beat)
            return
        with Journal(run, attempt, rank) as journal:
            model = _load(spec, plan, placement, beat, recorder, gang)
            rows = Rows(Claims(run, attempt, rank), InputIndex(run.input), journal, beat)
            _lead(model, spec, plan, rows, recorder)
            rows.index.close()


def _load(
    spec: JobSpec,
    plan: Plan,
    placement: Placement,
    beat: Heartbeat,
    recorder: Recorder,
    gang: Gang,
) -> Any:
    """What the strategy loads for this rank; the heartbeat's figures say how that went."""
    beat.phase("loading")
    began, read_before = time.perf_counter(), storage_bytes()
    with recorder.span("load", placement.stage):
        model = strategies.get(plan.strategy).load(placement, plan, spec, recorder, gang)
    load_s = time.perf_counter() - began
    read = storage_bytes() - read_before
    process.keep_freed_memory()
    beat.measured(started=time.time(), load_s=load_s, bytes_read=read)
    get_logger().info("loaded in %.1f s", load_s)
    return model


def _lead(model: StepModel, spec: JobSpec, plan: Plan, rows: Rows, recorder: Recorder) -> None:
    """Run the engine of this replica."""
    text = Text.load(spec.model, max_length=plan.batch.max_length, template=spec.input.template)
    engine = ENGINES[spec.task](model, text, plan.batch, plan.schedule == "gpipe")
    beat = rows.beat
    beat.phase("running")
    if isinstance(model, SweepModel):
        model.on_progress = partial(_in_sweep, beat)
    choices = Choices(rows.pull, rows.emit)
    whole = engine.run(choices.pull, choices.emit, lambda: _between_steps(engine, beat, recorder))
    beat.phase("draining" if not whole else "running")
    beat.measured(**model.figures())
    model.close()
    beat.measured(**first_token_figures(engine.counters.first_tokens))
    get_logger().info("%s after %d steps", "done" if whole else "drained", engine.counters.steps)


def _serve(server: Server, beat: Heartbeat) -> None:
    """Work for this replica's first rank until that one is done or drained."""
    status = beat.status

    def working(in_step: bool) -> None:
        # The thread of the heartbeat writes it. Only a rank in a step can be stuck in one.
        status.phase = "running" if in_step else "serving"
        status.steps += in_step
        beat.measured(**peak_memory())

    beat.phase("serving")
    beat.measured(**server.serve(working))
    get_logger().info("served %d steps", status.steps)


def _between_steps(engine: Loop[Any, Any], beat: Heartbeat, recorder: Recorder) -> bool:
    """Tell heartbeat and recorder how far the engine is; True when the run is to be drained."""
    done, status = engine.counters, beat.status
    status.steps = done.steps
    status.prompt_tokens = done.prompt_tokens
    status.completion_tokens = done.completion_tokens
    recorder.count_tokens(done.completion_tokens)
    beat.measured(**peak_memory())
    return beat.draining.is_set()


def _in_sweep(beat: Heartbeat) -> None:
    """A sweep over weights on disk may take minutes: each block that is done shows that it goes on."""
    beat.status.blocks += 1
    beat.measured(**peak_memory())


def storage_bytes() -> int:
    """Bytes that this process has had read from storage so far; what the page cache held is not in it."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("read_bytes")).split()[1])


def first_token_figures(seconds: Iterable[float]) -> dict[str, float]:
    """Mean, median and 95th percentile of the time from a prompt's first step to its first new token."""
    found = sorted(seconds)
    if not found:
        return {}
    return {
        "ttft_s_mean": sum(found) / len(found),
        "ttft_s_p50": found[len(found) // 2],
        "ttft_s_p95": found[min(len(found) - 1, len(found) * 95 // 100)],
    }


def peak_memory() -> dict[str, float]:
    """Figures, in bytes: on a GPU the most that tensors took, over this process's GPUs and, of several, of each by its
    place among them; else the largest resident set so far."""
    import torch

    if torch.cuda.is_available():
        each = [torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count())]
        several = enumerate(each) if len(each) > 1 else ()
        return {
            "peak_memory_bytes": sum(each),
            **{f"peak_memory_bytes@gpu{number}": peak for number, peak in several},
        }
    # Not getrusage: what it tells of a process that was forked and then became another counts its parent's memory.
    status = Path("/proc/self/status").read_text().split()
    return {"peak_memory_bytes": int(status[status.index("VmHWM:") + 1]) * 1024}
