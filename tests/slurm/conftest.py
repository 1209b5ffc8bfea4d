"""The Slurm cluster that the tests of this folder run on: slurm/devcluster, one for the whole session."""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "slurm" / "devcluster"))
sys.path.insert(0, str(Path(__file__).parents[1] / "faults"))  # the checker

from cluster import Cluster, why_not
from gate import Gate
from held_jobs import SHARE


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Four idle nodes; they end with this process, even if it is killed."""
    if reason := why_not():
        if os.environ.get("CI") == "true":
            pytest.fail(f"no Slurm cluster in CI: {reason}")
        pytest.skip(f"no Slurm cluster here: {reason}")
    with tempfile.TemporaryDirectory(prefix="devcluster-") as folder:
        cluster = Cluster(Path(folder) / "cluster")
        try:
            yield cluster.up(tied=True)
        finally:
            cluster.down()


@pytest.fixture
def fragile(cluster: Cluster) -> Iterator[Cluster]:
    """The same cluster, for a test that breaks it or leaves jobs: mended and emptied afterwards."""
    yield cluster
    cluster.reset()


@pytest.fixture
def env(cluster: Cluster, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a user of the cluster, where nobody may ask sacct: many sites have none."""
    folder = tmp_path / "bin"
    folder.mkdir()
    sacct, asked = folder / "sacct", folder / "sacct-was-asked"
    sacct.write_text(f"#!/bin/sh\ntouch {asked}\nexit 127\n")
    sacct.chmod(0o755)
    yield {"SLURM_CONF": cluster.env["SLURM_CONF"], "PATH": f"{folder}:{os.environ['PATH']}"}
    assert not asked.exists(), "somebody asked sacct"


@pytest.fixture
def gate(tmp_path: Path, env: dict[str, str]) -> Gate:
    """In the environment of what is submitted: ranks wait after their share of rows."""
    gate = Gate(tmp_path / "gate", SHARE)
    env.update(gate.env)
    return gate


@pytest.fixture(scope="session")
def undisturbed(whole_run: Path) -> Path:
    return whole_run
