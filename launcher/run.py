"""The run directory: the only module that knows the names inside it.

Every file has one writer and appears whole (written beside, synced, renamed), except the journals,
which only grow and carry a checksum per row. docs/run-directory.md is its description for people.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from launcher import crash
from launcher.disk import create_exclusive, publish, read_json, sync_file, write_json
from launcher.errors import UsageError
from launcher.making import check_free, taken
from launcher.records import Attempt

__all__ = [
    "Run",
    "create_exclusive",
    "publish",
    "read_json",
    "request_drain",
    "sync_file",
    "write_json",
]

FOLDERS = ("input", "journals", "claims", "attempts", "logs", "timeline", "status")


class Run:
    """A run directory that exists. All paths in it are properties or methods of this class."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).absolute()

    @classmethod
    def create(cls, path: Path | str, fill: Callable[[Run], None] | None = None) -> Run:
        """Make a run directory (0700), also of an empty one, and ``fill`` it. Nothing stays behind if that fails.

        Raises Busy if it is taken, UsageError and PreflightError where none can be.
        """
        run = cls(path)
        with taken(run.path, run.input, run.job):
            run.make_folders()
            crash.point("made", run.path)
            sync_file(run.path.parent)
            crash.point("synced", run.path)
            if fill is not None:
                fill(run)
        return run

    def check_free(self) -> None:
        """Raises what ``create`` would."""
        check_free(self.path, self.input, self.job)

    def make_folders(self) -> None:
        """Those of a run that are not there: a copy may lack the empty ones, and logs are removed to save space."""
        for folder in FOLDERS:
            (self.path / folder).mkdir(mode=0o700, exist_ok=True)

    @classmethod
    def open(cls, path: Path | str) -> Run:
        """The run at ``path``. Raises UsageError if there is none."""
        run = cls(path)
        if not run.job.is_file():
            raise UsageError(
                "there is no run here", where=str(run.path), fix="launcher list shows the runs"
            )
        return run

    @property
    def name(self) -> str:
        return self.path.name

    # What was asked and planned; written once, by the submitting process.
    @property
    def job(self) -> Path:
        return self.path / "job.yaml"

    @property
    def spec(self) -> Path:
        return self.path / "spec.yaml"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def input(self) -> Path:
        """Folder of the input's index."""
        return self.path / "input"

    @property
    def weights(self) -> Path:
        """What was seen of the checkpoint's files when they were verified; not there if nobody asked for that."""
        return self.path / "weights.json"

    @property
    def has_rows(self) -> bool:
        """Whether the run has an input; a script's has not."""
        return any(self.input.iterdir())

    @property
    def accelerate(self) -> Path:
        """The config file of a script's `accelerate launch`."""
        return self.path / "accelerate.json"

    @property
    def files(self) -> Path:
        """What a script keeps over restarts: its checkpoints, its results."""
        return self.path / "files"

    @property
    def jobs(self) -> Path:
        """What the scheduler was given: {"scheduler", "jobs": [...], "host", ...}; rewritten by resume."""
        return self.path / "jobs.json"

    def start(self, number: int) -> Path:
        """Exclusive creation of it lets one process alone start the run for the ``number``-th time."""
        return self.attempts / f"start-{number:04d}.json"

    def starts(self) -> int:
        """The number of the latest start; 0 before the first."""
        found = (path.stem.rpartition("-")[2] for path in self.attempts.glob("start-*.json"))
        return max((int(number) for number in found), default=0)

    @property
    def submitit(self) -> Path:
        """submitit's folder: scripts, pickles, and the logs of the batch jobs."""
        return self.path / "submitit"

    # What came of it.
    @property
    def outputs(self) -> Path:
        return self.path / "outputs.jsonl"

    @property
    def errors(self) -> Path:
        return self.path / "errors.jsonl"

    @property
    def table(self) -> Path:
        """The outputs once more, where output.format is parquet."""
        return self.path / "outputs.parquet"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def trace(self) -> Path:
        return self.path / "trace.json"

    @property
    def metrics(self) -> Path:
        """How the run is doing, for Prometheus; rewritten while it goes."""
        return self.path / "metrics.prom"

    @property
    def manifest(self) -> Path:
        """Written last; its presence means that the run is complete."""
        return self.path / "manifest.json"

    def told(self, state: str) -> Path:
        """Exclusive creation of it lets one process alone tell (``notify``) that the run is in ``state`` for good."""
        return self.attempts / f"told-{state}.json"

    # The ledger.
    @property
    def journals(self) -> Path:
        return self.path / "journals"

    @property
    def claims(self) -> Path:
        return self.path / "claims"

    def journal(self, attempt: Attempt, rank: int) -> Path:
        return self.journals / f"{attempt.name}-r{rank:04d}.jsonl"

    def list_journals(self, attempt: Attempt | None = None) -> list[Path]:
        """Journals in order of world, attempt and rank."""
        return sorted(self.journals.glob(f"{attempt.name if attempt else 'w'}*.jsonl"))

    @property
    def merged(self) -> Path:
        """How far each journal was read by the merge that found every row: fixes the results for good."""
        return self.journals / "merged.json"

    def claim(self, chunk: int, generation: int) -> Path:
        """Claims on one chunk; that of the highest generation is in force."""
        return self.claims / f"{chunk:06d}.g{generation}"

    def claimant(self, attempt: Attempt, rank: int) -> Path:
        """Says who claims; every claim of that rank is a link to it."""
        return self.claims / f"{attempt.name}-r{rank:04d}"

    # Attempts.
    @property
    def attempts(self) -> Path:
        return self.path / "attempts"

    def attempt_dir(self, attempt: Attempt) -> Path:
        return self.attempts / attempt.name

    def attempt_file(self, attempt: Attempt, name: str) -> Path:
        """``attempt`` (who started it), ``rendezvous``, ``drain`` (asked to stop), ``ended`` ..."""
        return self.attempt_dir(attempt) / f"{name}.json"

    def list_attempts(self, world: int | None = None) -> list[Attempt]:
        """Attempts in order of world and number."""
        names = "w*-a*" if world is None else f"w{world:04d}-a*"
        entries = (entry for entry in self.attempts.glob(names) if entry.is_dir())
        found = (Attempt.parse(entry.name) for entry in entries)
        return sorted(found, key=lambda a: (a.world, a.number))

    def node(self, attempt: Attempt, node: int) -> Path:
        """How the agent of a node is doing; rewritten by it about once a second."""
        return self.attempt_file(attempt, f"node-{node:04d}")

    def nodes(self, attempt: Attempt) -> list[Path]:
        """How the agents of all its nodes are doing."""
        return sorted(self.attempt_dir(attempt).glob("node-*.json"))

    def rank_errors(self, attempt: Attempt) -> list[Path]:
        """Errors that ranks left behind, the first one first."""
        found = self.attempt_dir(attempt).glob("error-r*.json")
        return sorted(found, key=lambda path: path.stat().st_mtime_ns)

    def rank_error(self, attempt: Attempt, rank: int) -> Path:
        return self.attempt_file(attempt, f"error-r{rank:04d}")

    def status(self, attempt: Attempt, rank: int) -> Path:
        return self.path / "status" / f"{attempt.name}-r{rank:04d}.json"

    def progress(self, attempt: Attempt, rank: int) -> Path:
        """Where a script may write how many steps it has done."""
        return self.path / "status" / f"{attempt.name}-r{rank:04d}.steps"

    def list_progress(self, attempt: Attempt) -> list[Path]:
        return sorted((self.path / "status").glob(f"{attempt.name}-r*.steps"))

    def statuses(self, *attempts: Attempt) -> list[Path]:
        """Of the ranks of these attempts; one listing for all of them."""
        names = {attempt.name for attempt in attempts}
        found = (self.path / "status").glob("w*-r*.json")
        return sorted(path for path in found if path.name.rpartition("-")[0] in names)

    def log(self, attempt: Attempt, who: str) -> Path:
        """``who`` is ``rank-0003``, ``launch-0001`` (a node's `accelerate launch`)."""
        return self.path / "logs" / f"{attempt.name}-{who}.log"

    def agent_log(self, world: int, node: int) -> Path:
        """The agent's own words, over all attempts of its world."""
        return self.path / "logs" / f"agent-w{world:04d}-n{node:04d}.log"

    def tracker_log(self, world: int) -> Path:
        """What the process said that tells W&B of the run."""
        return self.path / "logs" / f"wandb-w{world:04d}.log"

    def list_logs(self, rank: int | None = None) -> list[Path]:
        """Logs of ranks, launches, agents and batch jobs, or those of one rank over all attempts."""
        if rank is not None:
            return sorted((self.path / "logs").glob(f"*-rank-{rank:04d}.log"))
        return [*sorted((self.path / "logs").glob("*.log")), *sorted(self.submitit.glob("*.out"))]

    def timeline(self, attempt: Attempt, rank: int) -> Path:
        return self.path / "timeline" / f"{attempt.name}-r{rank:04d}.jsonl"

    def timelines(self) -> list[Path]:
        return sorted((self.path / "timeline").glob("*.jsonl"))


def request_drain(run: Run, attempt: Attempt, reason: str) -> None:
    """Ask the ranks of ``attempt`` to stop between two steps. The first reason stays."""
    marker = run.attempt_file(attempt, "drain")
    if not marker.exists():
        create_exclusive(marker, json.dumps({"reason": reason, "time": time.time()}) + "\n")
