"""The launcher on a real Slurm cluster: submit, arrays, several nodes, requeue, cancel, resume, failures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from adder import is_right, prompt_rows
from cluster import Cluster
from jobs import journaled, launcher, read_rows, texts, wait_for, write_job
from on_slurm import state, submit, wait_complete

pytestmark = pytest.mark.slurm

TWO = {"strategy": "sequential", "replicas": 2}
LONG = 500  # rows: long enough to be interrupted


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
    cluster: Cluster, env: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    spec = write_job(tmp_path, 200, parallel=TWO, resources={"device": "cpu", "nodes": 2})
    submit(spec, run, env)
    wait_complete(run, env)
    summary = json.loads((run / "summary.json").read_text())
    assert len({stage["host"] for stage in summary["stages"]}) == 2
    assert all(path.read_bytes().count(b"\n") > 10 for path in run.glob("journals/*.jsonl"))
    assert len(texts(run)) == 200
    lines = json.loads(launcher("logs", run, "--rank", "1", "--json", env=env).stdout)
    assert any("joined 2 ranks on n" in line["line"] for line in lines)


def test_a_pipeline_over_two_nodes(cluster: Cluster, env: dict[str, str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    parallel = {"strategy": "pipeline", "stages": 2}
    spec = write_job(tmp_path, 60, parallel=parallel, resources={"device": "cpu", "nodes": 2})
    submit(spec, run, env)
    wait_complete(run, env)
    rows = read_rows(run / "outputs.jsonl")
    assert [row["id"] for row in rows] == [row["id"] for row in prompt_rows(60)]
    assert sum(is_right(row) for row in rows) >= 59
    stages = json.loads((run / "summary.json").read_text())["stages"]
    assert [(stage["stage"], stage["rank"]) for stage in stages] == [(0, 0), (1, 1)]
    assert len({stage["host"] for stage in stages}) == 2
    assert all(stage["busy"] > 0 for stage in stages)


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
    cluster: Cluster, env: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    jobs = submit(write_job(tmp_path, 300, slurm={"array": 3}), run, env)
    assert [job.split("_")[1] for job in jobs] == ["0", "1", "2"]
    wait_complete(run, env)
    assert len(texts(run)) == 300
    worlds = {path.name[:5] for path in run.glob("journals/*.jsonl")}
    assert worlds == {"w0000", "w0001", "w0002"}
    assert sum(path.read_bytes().count(b"\n") for path in run.glob("journals/*.jsonl")) == 300


def test_requeue_goes_on_with_a_new_attempt(
    fragile: Cluster, env: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    (job,) = submit(write_job(tmp_path, LONG), run, env)
    wait_for(lambda: journaled(run) > 20)
    fragile.scontrol("requeue", job)
    wait_complete(run, env)
    assert len(texts(run)) == LONG
    assert len(list(run.glob("attempts/w*"))) == 2
    assert journaled(run) < LONG + 20, "what was done was done again"


def test_a_killed_node_loses_nothing(fragile: Cluster, env: dict[str, str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    submit(write_job(tmp_path, LONG), run, env)
    wait_for(lambda: journaled(run) > 20)
    attempt = json.loads(next(run.glob("attempts/*/attempt.json")).read_text())
    fragile.kill_node(attempt["host"])
    fragile.scontrol("update", f"node={attempt['host']}", "state=down", "reason=test")
    wait_complete(run, env)
    assert len(texts(run)) == LONG
    hosts = [
        json.loads(path.read_text())["host"] for path in sorted(run.glob("attempts/*/attempt.json"))
    ]
    assert len(set(hosts)) == 2


def test_cancel_then_resume(fragile: Cluster, env: dict[str, str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    submit(write_job(tmp_path, LONG), run, env)
    wait_for(lambda: journaled(run) > 20)
    launcher("cancel", run, env=env)
    assert state(run, env)["state"] == "stopped"
    before = journaled(run)
    assert 20 < before < LONG
    (job,) = json.loads(launcher("resume", run, "--json", env=env).stdout)["jobs"]
    busy = launcher("resume", run, code=75, env=env)
    assert job in busy.stderr
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
    run = tmp_path / "run"
    spec = write_job(tmp_path, 30, parallel=TWO, resources={"device": "cpu", "nodes": 2})
    submit(spec, run, {**env, "OMP_NUM_THREADS": "1"})
    (tmp_path / "prompts.jsonl").write_text("edited\n")
    found = wait_for(lambda: (s := state(run, env))["state"] == "failed" and s)
    failure = found["failure"]
    assert failure["where"].startswith("rank ")
    assert " on n" in failure["where"]
    assert "prompts.jsonl" in failure["where"] + failure["what"]
    assert "rank" in launcher("status", run, env=env).stdout


def test_the_time_limit_drains_and_requeues(
    fragile: Cluster, env: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    (job,) = submit(write_job(tmp_path, LONG), run, env)
    wait_for(lambda: journaled(run) > 20)
    fragile.scancel("--signal=USR2", job)
    wait_complete(run, env)
    ended = [
        json.loads(path.read_text())["kind"] for path in sorted(run.glob("attempts/*/ended.json"))
    ]
    assert ended == ["drained", "done"]
    assert journaled(run) == len(texts(run)) == LONG


def test_refused_by_sbatch(cluster: Cluster, env: dict[str, str], tmp_path: Path) -> None:
    spec = write_job(tmp_path, 3, slurm={"partition": "nosuch"})
    refused = launcher("submit", spec, "--run-dir", tmp_path / "run", code=4, env=env)
    assert "nvalid partition" in refused.stderr


def test_gpus_are_asked_for_and_dealt_out(
    cluster: Cluster, env: dict[str, str], tmp_path: Path
) -> None:
    spec = write_job(
        tmp_path, 3, resources={"device": "cuda", "gpus_per_node": 4, "gpu": "A100-80GB"}
    )
    plan = json.loads(launcher("submit", spec, "--dry-run", "--json", env=env).stdout)
    assert "#SBATCH --gpus-per-node=4" in plan["script"]
