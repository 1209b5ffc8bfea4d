"""What tests of faults share: runs without a model, forked from one server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from checker import check
from jobs import prompt_rows, write_job
from rehearsal import serve

ROWS = 24
Play = Callable[..., int]


@pytest.fixture(scope="session")
def play() -> Iterator[Play]:
    with serve() as play:
        yield play


@pytest.fixture(scope="session")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job with some rows that can't be asked among the others, one of them for its depth."""
    rows = prompt_rows(ROWS)
    rows[7] = {"id": "nothing asked"}
    rows[9] = rows[8]
    path = write_job(tmp_path_factory.mktemp("job"), rows)
    with (path.parent / "prompts.jsonl").open("a") as file:
        file.write('{"id": "deep", "prompt": ' + "[" * 100_000 + "\n")
    return path


@pytest.fixture(scope="session")
def rehearsed(play: Play, spec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without a model that nothing happened to."""
    run = tmp_path_factory.mktemp("rehearsed") / "run"
    assert play(spec, run) == 0
    assert check(run) == []
    return run


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder that is not on a disk: what a power cut leaves is simulated, and syncs take no time."""
    ram = Path("/dev/shm")
    with TemporaryDirectory(prefix="faults-", dir=ram if ram.is_dir() else None) as folder:
        yield Path(folder)
