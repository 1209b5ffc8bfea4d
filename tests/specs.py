"""Job specs for tests: written, loaded, and what is said about wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.errors import SpecError
from launcher.job.load import load_spec
from launcher.job.spec import JobSpec

MINIMAL = "name: demo\nmodel: {path: org/model}\ninput: {path: prompts.jsonl}\n"


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "job.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def load(folder: Path, more: str = "", *overrides: str) -> JobSpec:
    return load_spec(write(folder, MINIMAL + more), overrides).spec


def problems(folder: Path, text: str | bytes, *overrides: str) -> list[str]:
    """What is said about a spec, without the file's folder."""
    with pytest.raises(SpecError) as caught:
        load_spec(write(folder, text), overrides)
    return [str(problem).replace(f"{folder}/", "") for problem in caught.value.problems]
