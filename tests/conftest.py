"""Shared by all tests: helper modules of this folder are importable, no test touches the user's home, and none has more
than one thread compute: threads that share a core with another process wait for each other a hundred times longer than
they compute."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
os.environ["OMP_NUM_THREADS"] = "1"  # before anybody imports torch
os.environ["SLURM_CPUS_ON_NODE"] = "1"  # what ranks go by; Slurm's own jobs have their own
from jobs import launcher, mixed_rows, texts, write_job

# What a shell starts in the background ignores it, and so would the runs that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

WHOLE_ROWS = 160


def homes(folder: Path) -> dict[str, str]:
    """Where registry, site profiles and measured machines are."""
    return {f"XDG_{kind}_HOME": str(folder / kind.lower()) for kind in ("STATE", "CONFIG", "CACHE")}


@pytest.fixture(scope="session", autouse=True)
def home_of_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For what several tests share."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in homes(tmp_path_factory.mktemp("home")).items():
            patch.setenv(name, value)
        yield


@pytest.fixture(autouse=True)
def home_apart(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test's own."""
    for name, value in homes(tmp_path_factory.mktemp("home")).items():
        monkeypatch.setenv(name, value)


@pytest.fixture(autouse=True)
def signals_kept() -> Iterator[None]:
    """Commands that run in this process change what signals do: one that ends at a broken pipe would end all tests."""
    before = signal.getsignal(signal.SIGPIPE)
    yield
    signal.signal(signal.SIGPIPE, before)


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of mixed rows by the whole model, to which nothing happened."""
    folder = tmp_path_factory.mktemp("whole")
    spec = write_job(folder, mixed_rows(WHOLE_ROWS), batch={"slots": 16})
    launcher("run", spec, "--run-dir", folder / "run")
    return folder / "run"


@pytest.fixture(scope="session")
def whole_texts(whole_run: Path) -> Callable[[int], dict[str, str]]:
    """What the model says when it is whole, of so many mixed rows."""
    found = list(texts(whole_run).items())
    return lambda count: dict(found[:count])
