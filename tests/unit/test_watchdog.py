"""What an agent makes of its ranks' status files: who is stuck, and who only waits for another one."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launcher import ledger
from launcher.errors import RunFailed, Superseded
from launcher.job.spec import JobSpec
from launcher.plan.plan import Batch, Placement, Plan
from launcher.records import Attempt, RankStatus
from launcher.run import Run, request_drain, write_json
from launcher.runtime import freshness, process
from launcher.runtime import watchdog as module
from launcher.runtime.failure import refusals
from launcher.runtime.freshness import Freshness
from launcher.runtime.outcome import Outcome, conclude
from launcher.runtime.watchdog import Watchdog

ATTEMPT = Attempt(0, 1)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """Something that runs until it is ended."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def watchdog(folder: Path, child: subprocess.Popen[bytes], stages: int, step: str) -> Watchdog:
    spec: dict[str, Any] = {
        "name": "test",
        "model": {"path": "org/model"},
        "input": {"path": "prompts.jsonl"},
        "limits": {"step": step},
    }
    plan = Plan(
        fits=True,
        reasons=[],
        strategy="pipeline",
        device="cpu",
        dtype="float32",
        parameters=1,
        weights_bytes=4,
        kv_bytes_per_token=1,
        world_size=stages,
        ranks_per_node=stages,
        nodes=1,
        devices=[],
        placements=[Placement(rank=r, replica=0, node=0, stage=r) for r in range(stages)],
        batch=Batch(groups=1, slots=1, max_length=8, prefill_chunk=8),
    )
    run = Run.create(folder / "run")
    run.job.touch()
    run.attempt_dir(ATTEMPT).mkdir(parents=True)
    return Watchdog(run, JobSpec.model_validate(spec), plan, 0, ATTEMPT, child, lambda: None)


def look(watching: Watchdog, phases: list[str], at_s: float, **done: int) -> Outcome | None:
    """What the watchdog says ``at_s`` seconds after what the ranks have ``done`` was first seen."""
    for rank, phase in enumerate(phases):
        counts = {"steps": 3} | done
        status = RankStatus(
            ATTEMPT.name, rank, 0, "here", 1, phase, updated=time.monotonic(), **counts
        )
        write_json(watching.run.status(ATTEMPT, rank), asdict(status))
    for key, (value, seen) in list(watching.fresh.seen.items()):
        watching.fresh.seen[key] = value, seen - at_s
    watching._look()
    return watching._deadlines()


def test_a_stage_that_waits_is_not_stuck(tmp_path: Path, child: subprocess.Popen[bytes]) -> None:
    watching = watchdog(tmp_path, child, 3, "60s")
    phases = ["running", "serving", "serving"]
    assert look(watching, phases, 0) is None
    assert look(watching, phases, 100) is None, "the first stage has the others' time as well"


def test_the_stage_in_a_step_is_blamed_before_the_first_one(
    tmp_path: Path, child: subprocess.Popen[bytes]
) -> None:
    watching = watchdog(tmp_path, child, 3, "60s")
    phases = ["running", "serving", "running"]
    assert look(watching, phases, 0) is None
    outcome = look(watching, phases, 61)
    assert outcome is not None
    assert outcome.error is not None
    assert outcome.error["what"] == "rank 2 has been in one step for more than limits.step (60 s)"
    assert outcome.error["where"] == "rank 2 on here"


@pytest.mark.parametrize(("stages", "seconds"), [(1, 61), (2, 121)])
def test_a_first_stage_that_is_stuck_is_blamed(
    stages: int, seconds: int, tmp_path: Path, child: subprocess.Popen[bytes]
) -> None:
    watching = watchdog(tmp_path, child, stages, "60s")
    phases = ["running", "serving"][:stages]
    assert look(watching, phases, 0) is None
    outcome = look(watching, phases, seconds)
    assert outcome is not None
    assert outcome.error is not None
    assert outcome.error["where"] == "rank 0 on here"


@pytest.mark.parametrize("what", ["steps", "blocks", "rows_done"])
def test_a_rank_that_moves_on_is_let_be(
    what: str, tmp_path: Path, child: subprocess.Popen[bytes]
) -> None:
    watching = watchdog(tmp_path, child, 2, "60s")
    for count in range(5):
        assert look(watching, ["running", "running"], 40, **{what: count}) is None


def test_a_rank_that_has_finished_may_be_silent(
    tmp_path: Path, child: subprocess.Popen[bytes]
) -> None:
    watching = watchdog(tmp_path, child, 2, "60s")
    frozen = RankStatus(ATTEMPT.name, 1, 0, "here", 1, "finished", updated=1.0, steps=3)
    for at_s in (0, 1000):
        assert look(watching, ["running"], at_s, steps=at_s) is None
        write_json(watching.run.status(ATTEMPT, 1), asdict(frozen))
    frozen.phase = "running"
    write_json(watching.run.status(ATTEMPT, 1), asdict(frozen))
    assert look(watching, ["running"], 0, steps=2) is None
    outcome = look(watching, ["running"], 121, steps=1)
    assert outcome is not None
    assert outcome.error is not None
    assert "rank 1 has shown no sign of life" in outcome.error["what"]


def test_who_did_not_join_is_blamed_before_who_waits_for_it(
    tmp_path: Path, child: subprocess.Popen[bytes]
) -> None:
    watching = watchdog(tmp_path, child, 3, "60s")
    watching.started = time.monotonic() - 301
    outcome = look(watching, ["joining", "joining"], 0)
    assert outcome is not None
    assert outcome.error is not None
    assert outcome.error["what"].startswith("rank 2 did not join within limits.join (300 s)")


def test_the_last_rank_to_join_may_do_so_while_its_lateness_is_looked_at(
    tmp_path: Path, child: subprocess.Popen[bytes]
) -> None:
    watching = watchdog(tmp_path, child, 2, "60s")
    watching.started = time.monotonic() - 301
    assert look(watching, ["joining", "joining"], 0) is not None
    for rank in range(2):
        status = RankStatus(ATTEMPT.name, rank, 0, "here", 1, "loading", updated=time.monotonic())
        write_json(watching.run.status(ATTEMPT, rank), asdict(status))
    assert watching._deadlines() is None  # what it saw in this round is behind the times


def test_loading_has_a_deadline(tmp_path: Path, child: subprocess.Popen[bytes]) -> None:
    watching = watchdog(tmp_path, child, 1, "60s")
    assert look(watching, ["loading"], 0) is None
    assert look(watching, ["loading"], 3000) is None
    outcome = look(watching, ["loading"], 700)
    assert outcome is not None
    assert outcome.error is not None
    assert "loading for more than limits.load" in outcome.error["what"]


def test_time_in_which_the_agent_itself_stood_still_counts_for_nobody() -> None:
    fresh = Freshness()
    fresh.age("rank", 1)
    fresh.seen["rank"] = (1, time.monotonic() - 100)
    fresh.forgive(95)
    assert 4 < fresh.age("rank", 1) < 60


def test_node_0_waits_for_nodes_that_work_on(
    tmp_path: Path, child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that goes on half of limits.stall each time node 0 looks; the other one says something meanwhile."""
    watching = watchdog(tmp_path, child, 1, "60s")
    watching.plan = watching.plan.model_copy(update={"nodes": 2})
    done, path, now = Outcome("done"), watching.run.node(ATTEMPT, 1), 0.0
    beats = iter(range(10))

    def sleep(_: float) -> None:
        nonlocal now
        now += watching.spec.limits.stall / 2
        beat = next(beats, None)
        if beat is not None:
            write_json(path, {"host": "n2", "beat": beat, "outcome": None}, durable=False)
        elif path.exists():
            conclude(watching.run, ATTEMPT, 1, Outcome("drained"))

    for each in (module, freshness):
        monkeypatch.setattr(each, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    assert watching.gather(done) == Outcome("drained")
    path.unlink()
    silent = watching.gather(done)
    assert silent.kind == "failed"
    assert "node 1 fell silent" in str(silent.error)


@pytest.mark.parametrize("first", [0, 1])
def test_both_ends_of_a_cut_line_say_the_same(
    first: int, tmp_path: Path, child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Node 0 speaks for the world, with its own words or those of the node that noticed before it did."""
    watching, hosts = watchdog(tmp_path, child, 1, "60s"), ["n1", "n2"]
    for node, host in enumerate(hosts):
        write_json(watching.run.node(ATTEMPT, node), {"host": host, "beat": 1.0, "outcome": None})
    watching.node = first
    monkeypatch.setattr(module.socket, "gethostname", lambda: hosts[first])
    monkeypatch.setattr(watching, "lifelines", SimpleNamespace(broken=lambda: {1 - first: "cut"}))
    outcome = watching._cut_off()
    assert outcome is not None
    assert outcome.error is not None
    assert outcome.error["where"] == "n2"
    assert outcome.error["what"] == "node 1 is out of reach of node 0, n1"


def draining(watching: Watchdog, phases: list[str], waited_s: float) -> Outcome | None:
    """What the watchdog says ``waited_s`` seconds after it saw the request to drain."""
    request_drain(watching.run, ATTEMPT, "test")
    assert look(watching, phases, 0) is None
    watching.drain_seen = time.monotonic() - waited_s
    return watching._drain()


def test_a_rank_that_does_not_begin_to_drain_is_not_waited_for(
    tmp_path: Path, child: subprocess.Popen[bytes]
) -> None:
    watching = watchdog(tmp_path, child, 2, "60s")
    assert draining(watching, ["running", "serving"], 1) is None
    assert draining(watching, ["running", "serving"], 6) == Outcome("drained")


def test_a_rank_that_drains_has_all_of_limits_drain(
    tmp_path: Path, child: subprocess.Popen[bytes]
) -> None:
    watching = watchdog(tmp_path, child, 2, "60s")
    assert draining(watching, ["draining", "finished"], 40) is None
    assert draining(watching, ["draining", "finished"], 61) == Outcome("drained")


def test_a_later_attempt_ends_the_watch(tmp_path: Path, child: subprocess.Popen[bytes]) -> None:
    watching = watchdog(tmp_path, child, 1, "60s")
    ledger.open_attempt(watching.run, 0, {})
    with pytest.raises(Superseded, match="w0000-a0002 has taken over from w0000-a0001"):
        watching.watch()
    assert child.poll() is not None
    watching.plan, watching.last_look = watching.plan.model_copy(update={"nodes": 2}), 0.0
    with pytest.raises(Superseded):
        watching.gather(Outcome("done"))


def test_a_run_directory_that_is_gone_ends_the_watch(
    tmp_path: Path, child: subprocess.Popen[bytes]
) -> None:
    watching = watchdog(tmp_path, child, 1, "60s")
    shutil.rmtree(watching.run.path)
    with pytest.raises(RunFailed, match="No such file") as caught, refusals(watching.run):
        watching.watch()
    assert caught.value.where == str(watching.run.job)
    assert child.poll() is not None


@pytest.mark.parametrize(
    ("ends", "how", "cause"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "ended with signal SIGKILL", "out of memory, or"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "ended with signal SIGSEGV", "a crash in a lib"),
        ("os._exit(3)", "ended with exit code 3", None),
        ("os._exit(0)", "died, and nobody saw how", "it was ended from outside, crashed, or ran"),
    ],
)
def test_a_rank_that_is_gone_is_told_with_its_own_end(
    ends: str, how: str, cause: str | None, tmp_path: Path, child: subprocess.Popen[bytes]
) -> None:
    watching = watchdog(tmp_path, child, 1, "60s")
    with subprocess.Popen([sys.executable, "-c", f"import os, signal; {ends}"]) as rank:
        while process.start_time(rank.pid):  # nobody waits for it, as with a busy launcher
            time.sleep(0.01)
        status = RankStatus(ATTEMPT.name, 0, 0, "here", rank.pid, "running")
        write_json(watching.run.status(ATTEMPT, 0), asdict(status))
        watching._look()
        assert watching._gone() is None
    (seen, code) = watching.gone_seen[0]
    watching.gone_seen[0] = seen - 10, code
    outcome = watching._gone()
    assert outcome is not None
    assert outcome.error is not None
    assert outcome.error["what"] == f"rank 0 {how}"
    assert outcome.error["where"] == "rank 0 on here"
    assert (outcome.error["cause"] or "").startswith(cause or "")
    assert (outcome.error["cause"] is None) is (cause is None)
