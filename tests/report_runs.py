"""Run directories for tests of the report: pipelines that never ran, with the files that a run leaves."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from launcher.ledger import Counts
from launcher.measure.spans import Recorder
from launcher.plan.plan import Batch, DevicePlan, Placement, Plan, Predicted
from launcher.records import Attempt, RankStatus
from launcher.report.summary import build_summary
from launcher.run import Run, write_json

START = 1_700_000_000.0
GIB = 2**30
LOAD_S, MOVE_S = 2.0, 0.0008
PREDICTED: dict[str, Any] = {
    **{"utilization": 0.73, "bubble": 0.25, "transfer": 0.02, "weights": 0.0},
    **{"prefill_s": 104.2, "decode_s": 2101.7, "load_s": 211.0, "bytes_read": 32.5 * GIB},
}


@dataclass
class Pipeline:
    """A pipeline whose stages take ``stage_s`` for a decode step of each of ``groups``, ``steps`` times."""

    stage_s: tuple[float, ...] = (0.010, 0.012, 0.009, 0.011)
    groups: int = 3
    steps: int = 60
    replicas: int = 1
    name: str = "llama70b-pipeline"
    host: str = "node"
    attempts: int = 1
    spec: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path, complete: bool = True) -> Run:
        """The run, in a folder of its own under ``folder``, up to but without its report."""
        run = Run.create(folder / self.name)
        run.plan.write_text(self.plan().model_dump_json())
        run.job.write_text(json.dumps({**MINIMAL_SPEC, "name": "synthetic", **self.spec}))
        for number in range(1, self.attempts + 1):
            self._attempt(run, Attempt(0, number), START + 5000 * (number - 1))
        if complete:
            self._finish(run)
        return run

    def plan(self) -> Plan:
        stages = len(self.stage_s)
        devices = [
            DevicePlan(
                replica=rank // stages,
                stage=rank % stages,
                rank=rank,
                device=f"cuda:{rank % 4}",
                layers=(20 * (rank % stages), 20 * (rank % stages) + 19),
                weights_bytes=32 * GIB,
                kv_bytes=9 * GIB,
                activation_bytes=GIB,
                peak_bytes=(44 + rank % stages) * GIB,
                capacity_bytes=79 * GIB,
                **PREDICTED,
            )
            for rank in range(stages * self.replicas)
        ]
        return Plan(
            fits=True,
            reasons=[],
            strategy="pipeline",
            schedule="ring",
            device="cuda",
            dtype="bfloat16",
            parameters=68_976_648_192,
            weights_bytes=128 * GIB,
            kv_bytes_per_token=320 * 1024,
            world_size=len(devices),
            ranks_per_node=4,
            nodes=-(-len(devices) // 4),
            gpus_per_node=4,
            devices=devices,
            placements=[
                Placement(rank=d.rank, replica=d.replica, node=d.rank // 4) for d in devices
            ],
            batch=Batch(groups=self.groups, slots=16, max_length=2048, prefill_chunk=512),
            predicted=Predicted(
                tokens_per_s=3300.0, wall_s=5.0, utilization=0.75, bubble=0.25, gpu_hours=0.01
            ),
        )

    def _attempt(self, run: Run, attempt: Attempt, begin: float) -> None:
        last = attempt.number == self.attempts
        run.attempt_dir(attempt).mkdir()
        info = {"started": begin, "host": f"{self.host}0", "job_id": "4242"}
        write_json(run.attempt_file(attempt, "attempt"), info)
        end = begin
        for replica in range(self.replicas):
            end = max(end, begin + LOAD_S + self._replica(run, attempt, begin, replica))
        error = {"what": "rank 2 died: out of memory", "where": f"rank 2 on {self.host}0"}
        error |= {"cause": "too many slots", "fix": f"launcher resume {run.path}"}
        outcome = {"kind": "done", "error": None} if last else {"kind": "failed", "error": error}
        write_json(run.attempt_file(attempt, "ended"), {"ended": end + 1, **outcome})

    def _replica(self, run: Run, attempt: Attempt, begin: float, replica: int) -> float:
        stages = len(self.stage_s)
        recorders = [self._recorder(run, attempt, begin, replica, s) for s in range(stages)]
        free, ready, made, end = [0.0] * stages, [0.0] * self.groups, 0, 0.0
        for step in range(self.steps):
            for group in range(self.groups):
                kind, times = ("prefill", 4) if step % 20 == 0 else ("decode", 1)
                at = ready[group]
                for stage, recorder in enumerate(recorders):
                    start = LOAD_S + max(at, free[stage])
                    stop = start + self.stage_s[stage] * times
                    place = {"stage": stage, "group": group, "step": step}
                    recorder.add(kind, start, stop, **place)
                    recorder.add("transfer", stop, stop + MOVE_S, **place)
                    free[stage], at = stop - LOAD_S, stop - LOAD_S + MOVE_S
                ready[group], end, made = at, max(end, at), made + 16
                recorders[0]._tokens._rows.append((round((LOAD_S + at) * 1e6), made))
        for stage, recorder in enumerate(recorders):
            recorder.close()
            self._status(run, attempt, replica * stages + stage, begin + LOAD_S + end, made)
        return end

    def _recorder(
        self, run: Run, attempt: Attempt, begin: float, replica: int, stage: int
    ) -> Recorder:
        rank = replica * len(self.stage_s) + stage
        header = {
            "rank": rank,
            "replica": replica,
            "host": f"{self.host}{rank // 4}",
            "attempt": attempt.name,
            "clock": {"monotonic": 0.0, "epoch": begin, "offset": 0.0},
        }
        recorder = Recorder(run.timeline(attempt, rank), header)
        recorder.add("load", 0.2, LOAD_S, stage=stage)
        return recorder

    def _status(self, run: Run, attempt: Attempt, rank: int, now: float, made: int) -> None:
        replica, stage = divmod(rank, len(self.stage_s))
        host = f"{self.host}{rank // 4}"
        status = RankStatus(attempt.name, rank, replica, host, 1, phase="finished", updated=now)
        status.figures = {"peak_memory_bytes": (43.2 + stage) * GIB, "load_s": LOAD_S - 0.1 * stage}
        if stage == 0:
            status.rows_done, status.completion_tokens = 40, made
            status.figures |= {"ttft_s_mean": 0.21, "ttft_s_p50": 0.18, "ttft_s_p95": 0.44}
        write_json(run.status(attempt, rank), asdict(status))

    def _finish(self, run: Run) -> None:
        tokens = 16 * self.groups * self.steps * self.replicas
        write_json(run.summary, build_summary(run, Counts(42, 40, 2, 4000, tokens)))
        run.outputs.write_text("")
        run.errors.write_text(
            "".join(
                json.dumps({"index": i, "id": f"row-{i}", "code": code, "message": message}) + "\n"
                for i, code, message in (
                    (7, "too_long", "4096 tokens"),
                    (9, "bad_json", "not JSON"),
                )
            )
        )


MINIMAL_SPEC = {"model": {"path": "/models/llama-2-70b"}, "input": {"path": "prompts.jsonl"}}
