"""The Python API: its notebook, cell by cell, what it imports, and how it tells errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import PATIENCE_S, write_job

from launcher import JobSpec, Run, plan_job, run_here
from launcher.errors import Busy, SpecError, UsageError

ROOT = Path(__file__).parents[2]


def python(text: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-"],
        input=text,
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_cell_of_the_notebook_runs() -> None:
    cells = json.loads((ROOT / "docs" / "api.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 5
    said = python("\n".join(code), ROOT)
    assert "sums-0001 complete" in said
    assert "did you mean `parallel`?" in said
    assert not any(cell.get("outputs") for cell in cells), "leave the outputs out of the notebook"


def test_the_api_is_imported_when_it_is_asked_for(tmp_path: Path) -> None:
    said = python(
        "import sys, launcher\n"
        "print('launcher.api' in sys.modules, 'pydantic' in sys.modules)\n"
        "from launcher import JobSpec, submit, Run\n"
        "print(callable(submit), 'torch' in sys.modules, 'transformers' in sys.modules)\n"
        "import launcher.cli\n"
        "from launcher import submit\n"
        "print(callable(submit))\n",
        tmp_path,
    )
    assert said.split("\n")[:3] == ["False False", "True False False", "True"]


def test_a_file_and_a_spec_give_the_same_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_job(tmp_path, 5)
    monkeypatch.chdir(tmp_path)
    spec = JobSpec(
        name="test",
        model={"path": plan_model(path), "dtype": "float32"},
        batch={"slots": 4},
        input={"path": "prompts.jsonl"},
        generation={"max_new_tokens": 8},
        resources={"device": "cpu"},
    )
    assert plan_job(spec).devices == plan_job(path).devices
    assert plan_job(spec, ["batch.slots=2"]).batch.slots == 2
    assert plan_job(spec, here=True).script is None


def plan_model(path: Path) -> str:
    return next(line.split()[1] for line in path.read_text().splitlines() if "path: /" in line)


def test_errors_are_raised(tmp_path: Path) -> None:
    path = write_job(tmp_path, 2)
    with pytest.raises(SpecError, match="did you mean `parallel`"):
        plan_job(path, ["paralel.stages=2"])
    with pytest.raises(UsageError, match="no run 'nothing'"):
        Run("nothing")
    (tmp_path / "run").mkdir()
    with pytest.raises(Busy, match="exists already"):
        run_here(path, run_dir=tmp_path / "run")
