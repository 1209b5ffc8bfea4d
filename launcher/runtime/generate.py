"""The task `generate` on one rank: rows from the ledger through the engine into the journal."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from launcher import strategies
from launcher.engine.engine import Engine
from launcher.engine.text import Text
from launcher.input.prompts import InputIndex
from launcher.job.spec import JobSpec
from launcher.ledger import Claims, Journal
from launcher.logs import get_logger
from launcher.measure.spans import Recorder, clock
from launcher.plan.plan import Placement, Plan
from launcher.records import Attempt, Failure, Generation, Request
from launcher.run import Run
from launcher.runtime.heartbeat import Heartbeat


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

    def emit(self, record: Generation | Failure) -> None:
        """Hand a finished row to the journal."""
        self.journal.append(record)
        if isinstance(record, Failure):
            self.beat.status.rows_failed += 1
        self.beat.status.rows_done += 1


def generate(
    run: Run, spec: JobSpec, plan: Plan, placement: Placement, beat: Heartbeat, clock_offset: float
) -> None:
    """Load this rank's placement and work until no row is left or the run is drained."""
    attempt, rank = Attempt.parse(beat.status.attempt), placement.rank
    header = {
        "rank": rank,
        "replica": placement.replica,
        "host": beat.status.host,
        "attempt": attempt.name,
        "clock": clock(clock_offset),
    }
    with (
        Recorder(run.timeline(attempt, rank), header) as recorder,
        Journal(run, attempt, rank) as journal,
    ):
        beat.phase("loading")
        began, read_before = time.perf_counter(), storage_bytes()
        with recorder.span("load"):
            model = strategies.get(plan.strategy).load(placement, plan, spec, recorder)
            text = Text.load(
                spec.model, max_length=plan.batch.max_length, template=spec.input.template
            )
        beat.status.figures |= {
            "started": time.time(),
            "load_s": time.perf_counter() - began,
            "bytes_read": storage_bytes() - read_before,
        }
        get_logger().info("loaded in %.1f s", beat.status.figures["load_s"])
        beat.phase("running")
        engine = Engine(model, text, plan.batch)
        index = InputIndex(run.input)
        rows = Rows(Claims(run, attempt, rank), index, journal, beat)
        whole = engine.run(rows.pull, rows.emit, lambda: _between_steps(engine, beat))
        beat.phase("draining" if not whole else "running")
        model.close()
        index.close()
        beat.status.figures |= first_token_figures(engine.counters.first_tokens)
    get_logger().info("%s after %d steps", "done" if whole else "drained", engine.counters.steps)


def _between_steps(engine: Engine, beat: Heartbeat) -> bool:
    """Tell the heartbeat how far the engine is; True when the run is to be drained."""
    done, status = engine.counters, beat.status
    status.steps = done.steps
    status.prompt_tokens = done.prompt_tokens
    status.completion_tokens = done.completion_tokens
    status.figures["peak_memory_bytes"] = peak_memory()
    return beat.draining.is_set()


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


def peak_memory() -> int:
    """Bytes: on a GPU the most that tensors took, over this process's GPUs; else the largest resident set so far."""
    import torch

    if torch.cuda.is_available():
        return sum(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count()))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
