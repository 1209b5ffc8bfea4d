"""The doctor on a real cluster: the login node's view, and two nodes that meet."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from cluster import Cluster
from jobs import launcher

pytestmark = pytest.mark.slurm


def test_the_login_node_sees_controller_and_partitions(cluster: Cluster, tmp_path: Path) -> None:
    env = {"SLURM_CONF": cluster.env["SLURM_CONF"], "HF_HUB_OFFLINE": "1"}
    document = json.loads(launcher("doctor", "--dir", tmp_path, "--json", env=env).stdout)
    found = {f["check"]: f for f in document["findings"] if f["area"] == "slurm"}
    assert document["ok"]
    assert found["controller"]["status"] == "ok"
    assert found["accounting"]["status"] == "note"
    assert "gpu:a100:4" in found["partition main"]["says"]


def test_two_nodes_meet_and_talk(cluster: Cluster, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "launcher", "doctor", "--node", "--dir", str(tmp_path), "--json"]
    printed = cluster.srun("--nodes=2", "-wn1,n2", "--mem=1500", *argv, timeout=300)
    document = json.loads(printed)  # one of the nodes speaks, once
    assert document["ok"], printed
    found = {(f["host"], f["area"]): f for f in document["findings"]}
    hosts = {host for host, _ in found}
    assert hosts == {"n1", "n2"}
    shared = found["n1", "nodes"]
    assert shared["status"] == "ok" and "n1, n2 see each other" in shared["says"]
    assert found["n1", "ranks"]["check"] == "2 ranks on 2 nodes"
    assert "gloo" in found["n1", "ranks"]["says"]
    assert list(tmp_path.iterdir()) == []
