"""What processes read of their environment."""

from __future__ import annotations

import os

import pytest

from launcher import environ
from launcher.errors import PreflightError


def test_cpus_are_those_that_slurm_gave_where_it_does_not_bind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SLURM_CPUS_ON_NODE", raising=False)
    assert environ.cpus() == len(os.sched_getaffinity(0))
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "1")
    assert environ.cpus() == 1
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "100000")
    assert environ.cpus() == len(os.sched_getaffinity(0))


def test_a_rank_sees_its_own_gpus_and_is_told_of_missing_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 5,GPU-abc")
    environ.show_gpus((1, 2))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5,GPU-abc"
    with pytest.raises(PreflightError, match="GPU 3 is planned, and this process sees 2"):
        environ.show_gpus((3,))
