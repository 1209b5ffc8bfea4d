"""What is known of a run's attempts and ranks, where they can no longer say it themselves."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from launcher import ledger, state
from launcher.errors import RunFailed
from launcher.records import Attempt, RankStatus
from launcher.run import Run, write_json
from launcher.runtime.outcome import Outcome, conclude


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with the job 77, at its second attempt."""
    run = Run.create(tmp_path / "run")
    write_json(run.jobs, {"scheduler": "slurm", "jobs": ["77"], "start": 0, "started": 0.0})
    for restarts in range(2):
        ledger.open_attempt(run, 0, {"job_id": "77", "restarts": restarts})
    return run


def ranks(run: Run, phases: dict[str, float], job: str) -> tuple[list[dict[str, Any]], str]:
    """What is known of ranks that said these phases so many seconds ago, and of the run; ``job`` is squeue's word. Their
    hosts' clocks are an hour off."""
    attempt, now = Attempt(0, 2), time.time()
    for rank, (phase, ago) in enumerate(phases.items()):
        wrong = now + 3600 * (-1) ** rank
        status = RankStatus(attempt.name, rank, 0, "n1", 1, phase, wrong - 90, wrong)
        write_json(run.status(attempt, rank), asdict(status))
        os.utime(run.status(attempt, rank), (now - ago, now - ago))
    found = state.stand(run, {"77": job})
    return found.ranks, found.state


@pytest.mark.parametrize(
    ("job", "ago", "known", "word"),
    [
        ("running", 100.0, "running", "running"),
        ("gone", 1.0, "gone", "stopped"),
        ("pending", 1.0, "gone", "queued"),  # Slurm has put it back into the queue
        ("unknown", 1.0, "running", "running"),
        ("unknown", 100.0, "unknown", "unknown"),
    ],
)
def test_a_rank_is_what_is_known_of_it(
    job: str, ago: float, known: str, word: str, run: Run
) -> None:
    (rank,), found = ranks(run, {"running": ago}, job)
    assert (rank["phase"], rank["last_phase"], found) == (known, "running", word)
    assert ago <= rank["heard_s"] < ago + 60
    (first, second) = state.stand(run, {"77": job}).attempts
    assert first["state"] == "superseded"
    assert second["state"] == ("gone" if job == "pending" else job)


def test_a_rank_that_had_finished_is_not_gone(run: Run) -> None:
    found, _ = ranks(run, {"finished": 100.0, "draining": 100.0}, "gone")
    assert [rank["phase"] for rank in found] == ["finished", "gone"]


def test_nobody_waits_for_ranks_that_are_gone(run: Run) -> None:
    ranks(run, {"running": 100.0}, "gone")
    (attempt,) = [a for a in run.list_attempts() if a.number == 2]
    status = RankStatus(attempt.name, 0, 0, "n1", 1, "running", 1.0, time.time() - 100, rows_done=9)
    write_json(run.status(attempt, 0), {**asdict(status), "completion_tokens": 900})
    found = state.stand(run, {"77": "gone"})
    assert state._speed(found.ranks) is None
    assert state.stragglers(found.ranks) == {}


def test_what_another_nodes_agent_said_is_told_where_node_0_stands_still(run: Run) -> None:
    attempt, error = Attempt(0, 2), RunFailed("the agent of node 0 has been silent", where="n0")
    write_json(run.node(attempt, 0), {"host": "n0", "beat": 1.0, "outcome": None})
    conclude(run, attempt, 1, Outcome("failed", error.as_dict()))
    for job, word in (("running", "running"), ("gone", "failed")):
        found = state.stand(run, {"77": job})
        assert (found.state, found.failure) == (word, error.as_dict())
    ledger.end_attempt(run, attempt, {"kind": "drained", "error": None})
    assert state.stand(run, {"77": "gone"}).failure is None
