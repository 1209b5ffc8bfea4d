"""`task: script` on the cluster: two hosts train one model, are told to stop, and go on from its checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cluster import Cluster
from jobs import launcher, wait_for
from on_slurm import ended, said, state

pytestmark = pytest.mark.slurm

SPEC = Path(__file__).parents[2] / "configs" / "train-fsdp.yaml"


def test_two_hosts_train_and_go_on_from_their_checkpoint_after_the_time_limit(
    fragile: Cluster, tmp_path: Path
) -> None:
    env = {"SLURM_CONF": fragile.env["SLURM_CONF"], "OMP_NUM_THREADS": "1"}
    run, changes = tmp_path / "run", ["resources.nodes=2", "script.processes_per_node=1"]
    steps = "script.args=[--steps, 1000000000, --save-every, 4]"
    told = launcher("submit", SPEC, *changes, steps, "--run-dir", run, "--json", env=env)
    (job,) = json.loads(told.stdout)["jobs"]
    newest = run / "files" / "newest"
    wait_for(newest.exists)
    assert {rank["host"] for rank in state(run, env)["ranks"]} <= set(fragile.nodes)
    assert len({rank["host"] for rank in state(run, env)["ranks"]}) == 2
    # As Slurm does before the time limit; the next attempt has little left to do.
    resolved = (run / "job.yaml").read_text()
    (run / "job.yaml").write_text(resolved.replace('"1000000000"', '"12"'))
    fragile.scancel("--signal=USR2", job)
    wait_for(lambda: (run / "manifest.json").exists() or state(run, env)["state"] == "failed")
    assert state(run, env)["state"] == "complete", said(run)
    assert [end["kind"] for end in ended(run)] == ["drained", "done"]
    log = (run / "logs" / "w0000-a0002-rank-0000.log").read_text()
    done = int(log.split("from step ")[1].split(":")[0])
    assert done >= 4
    assert "50% of the weights on each rank" in log
    assert int(newest.read_text()) == max(12, done)
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["world_size"], summary["attempts"], summary["restarts"]) == (2, 2, 1)
