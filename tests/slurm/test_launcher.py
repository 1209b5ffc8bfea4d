"""The launcher on a real Slurm cluster: submit, arrays, several nodes, requeue, cancel, resume, failures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from adder import is_right, prompt_rows
from cluster import Cluster
from gate import Gate
from jobs import journaled, launcher, read_rows, texts, wait_for, write_job
from on_slurm import state, submit, wait_complete

pytestmark = pytest.mark.slurm

TWO = {"strategy": "sequential", "replicas": 2}
LONG, SHARE = (
    120,
    40,
)  # rows of a run that is interrupted, and how many an attempt of it takes before it waits


@pytest.fixture
def gate(tmp_path: Path, env: dict[str, str]) -> Gate:
    """In the environment of what is submitted: ranks wait after their share of rows."""
    gate = Gate(tmp_path / "gate", SHARE)
    env.update(gate.env)
    return gate


def test_a_job_gives_right_generations_in_input_order(
    cluster: Cluster, env: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    spec = write_job(tmp_path, 30)
    dry = json.loads(
        launcher("submit", spec, "--run-dir", run, "--dry-run", "--json", env=env).stdout
    )
    assert not run.exists()
    (job,) = submit(spec, run, env)
    wait_complete(run, env)
    (script,) = run.glob("submitit/*_submission.sh")
    assert script.read_text() == dry["script"]
    rows = read_rows(run / "outputs.jsonl")
    assert [row["id"] for row in rows] == [row["id"] for row in prompt_rows(30)]
    assert sum(is_right(row) for row in rows) >= 29
    by_job = json.loads(launcher("status", job, "--json", env=env).stdout)
    assert by_job["path"] == str(run)
    assert json.loads(launcher("verify", run, "--json", env=env).stdout)["ok"]
    hosts = {stage["host"] for stage in json.loads((run / "summary.json").read_text())["stages"]}
    assert hosts <= set(cluster.nodes)


def test_replicas_over_two_nodes_share_the_work(
    cluster: Cluster, env: dict[str, str], gate: Gate, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    spec = write_job(tmp_path, LONG, parallel=TWO, resources={"device": "cpu", "nodes": 2})
    submit(spec, run, env)
    gate.wait(2)
    gate.open()
    wait_complete(run, env)
    summary = json.loads((run / "summary.json").read_text())
    assert len({stage["host"] for stage in summary["stages"]}) == 2
    assert all(path.read_bytes().count(b"\n") > 10 for path in run.glob("journals/*.jsonl"))
    assert len(texts(run)) == LONG
    lines = json.loads(launcher("logs", run, "--rank", "1", "--json", env=env).stdout)
    assert any("joined 2 ranks on n" in line["line"] for line in lines)


def test_shards_within_hosts_and_stages_over_two(
    cluster: Cluster, env: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    parallel = {"strategy": "pipeline", "stages": 2, "tensor": 2}
    spec = write_job(
        tmp_path,
        40,
        parallel=parallel,
        batch={"slots": 8},
        resources={"device": "cpu", "nodes": 2},
        slurm={"cpus_per_task": 2},
    )
    submit(spec, run, env)
    wait_complete(run, env)
    rows = read_rows(run / "outputs.jsonl")
    assert [row["id"] for row in rows] == [row["id"] for row in prompt_rows(40)]
    assert sum(is_right(row) for row in rows) >= 39
    stages = json.loads((run / "summary.json").read_text())["stages"]
    assert [(stage["stage"], stage["rank"]) for stage in stages] == [(0, 0), (0, 1), (1, 2), (1, 3)]
    hosts = [stage["host"] for stage in stages]
    assert hosts[0] == hosts[1] != hosts[2] == hosts[3]
    assert all(stage["busy"] > 0 and stage["transfer"] > 0 for stage in stages)


def test_an_array_of_worlds_shares_one_run(
    cluster: Cluster, env: dict[str, str], gate: Gate, tmp_path: Path
) -> None:
    run, rows = tmp_path / "run", 4 * SHARE
    jobs = submit(write_job(tmp_path, rows, slurm={"array": 3}), run, env)
    assert [job.split("_")[1] for job in jobs] == ["0", "1", "2"]
    gate.wait(3)
    gate.open()
    wait_complete(run, env)
    assert len(texts(run)) == rows
    worlds = {path.name[:5] for path in run.glob("journals/*.jsonl")}
    assert worlds == {"w0000", "w0001", "w0002"}
    assert journaled(run) == rows


def test_a_killed_node_loses_nothing(
    fragile: Cluster, env: dict[str, str], gate: Gate, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    submit(write_job(tmp_path, LONG), run, env)
    gate.wait()
    attempt = json.loads(next(run.glob("attempts/*/attempt.json")).read_text())
    fragile.kill_node(attempt["host"])
    fragile.scontrol("update", f"node={attempt['host']}", "state=down", "reason=test")
    gate.wait(attempt=2)
    gate.open()
    wait_complete(run, env)
    assert len(texts(run)) == LONG
    hosts = [
        json.loads(path.read_text())["host"] for path in sorted(run.glob("attempts/*/attempt.json"))
    ]
    assert len(set(hosts)) == 2


def test_cancel_then_resume(
    fragile: Cluster, env: dict[str, str], gate: Gate, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    submit(write_job(tmp_path, LONG), run, env)
    gate.wait()
    launcher("cancel", run, env=env)
    assert state(run, env)["state"] == "stopped"
    assert 20 < journaled(run) < LONG
    (job,) = json.loads(launcher("resume", run, "--json", env=env).stdout)["jobs"]
    busy = launcher("resume", run, code=75, env=env)
    assert job in busy.stderr
    gate.open()
    wait_complete(run, env)
    assert len(texts(run)) == LONG
    assert journaled(run) == LONG


def test_cancel_of_a_job_that_waits(fragile: Cluster, env: dict[str, str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    submit(write_job(tmp_path, 10, slurm={"begin": "now+1hour"}), run, env)
    assert state(run, env)["state"] == "queued"
    launcher("cancel", run, env=env)
    assert state(run, env)["state"] == "stopped"


def test_a_failing_rank_is_named_with_its_host_and_last_lines(
    cluster: Cluster, env: dict[str, str], tmp_path: Path
) -> None:
    run, gate = tmp_path / "run", Gate(tmp_path / "gate", 0)
    spec = write_job(tmp_path, 30, parallel=TWO, resources={"device": "cpu", "nodes": 2})
    submit(spec, run, {**env, **gate.env})
    gate.wait(2)
    (tmp_path / "prompts.jsonl").write_text("edited\n")
    gate.open()
    found = wait_for(lambda: (s := state(run, env))["state"] == "failed" and s)
    failure = found["failure"]
    assert failure["where"].startswith("rank ")
    assert " on n" in failure["where"]
    assert "prompts.jsonl" in failure["where"] + failure["what"]
    assert "rank" in launcher("status", run, env=env).stdout


def test_refused_by_sbatch(cluster: Cluster, env: dict[str, str], tmp_path: Path) -> None:
    spec = write_job(tmp_path, 3, slurm={"partition": "nosuch"})
    refused = launcher("submit", spec, "--run-dir", tmp_path / "run", code=4, env=env)
    assert "nvalid partition" in refused.stderr


def test_a_job_that_never_came_to_its_agent_says_why(
    cluster: Cluster, env: dict[str, str], tmp_path: Path
) -> None:
    run, fails = tmp_path / "run", {"setup": ["echo no such module >&2; exit 3"]}
    submit(write_job(tmp_path, 4, slurm=fails), run, env)
    wait_for(lambda: state(run, env)["state"] == "failed")
    failure = state(run, env)["failure"]
    assert "| no such module" in failure["what"]
    assert failure["cause"] == "a line of slurm.setup failed"
    other, waits = tmp_path / "other", {"setup": [f"touch {tmp_path}/began; sleep 600"]}
    submit(write_job(tmp_path, 4, slurm=waits), other, env)
    wait_for((tmp_path / "began").exists)
    launcher("cancel", other, env=env)
    assert (state(other, env)["state"], state(other, env)["failure"]) == ("stopped", None)


def test_gpus_are_asked_for_and_dealt_out(
    cluster: Cluster, env: dict[str, str], tmp_path: Path
) -> None:
    spec = write_job(
        tmp_path, 3, resources={"device": "cuda", "gpus_per_node": 4, "gpu": "A100-80GB"}
    )
    plan = json.loads(launcher("submit", spec, "--dry-run", "--json", env=env).stdout)
    assert "#SBATCH --gpus-per-node=4" in plan["script"]
