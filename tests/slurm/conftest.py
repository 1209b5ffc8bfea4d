"""The Slurm cluster that the tests of this folder run on: slurm/devcluster, one for the whole session."""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "slurm" / "devcluster"))

from cluster import Cluster, why_not


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
