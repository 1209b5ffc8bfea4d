"""The Python API: its notebook, cell by cell, what it imports, and how it tells errors."""

from __future__ import annotations

import json
import re
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


def said(notebook: Path) -> list[str]:
    """What its cells say, without figures, which differ from one machine to the next."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    outputs = [json.dumps(cell.get("outputs", []), indent=1) for cell in cells]
    assert not any(re.search(r"(^|[\s\"'(=])/\w", each, re.MULTILINE) for each in outputs)
    return [re.sub(r"[\d.,]*\d", "#", each) for each in outputs]


def test_every_cell_of_the_notebook_runs_and_says_what_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    stored, made = ROOT / "docs" / "api.ipynb", tmp_path / "api.ipynb"
    python(
        f"import runpy, sys; sys.argv.append({str(made)!r}); runpy.run_module('docs.notebook', run_name='__main__')",
        ROOT,
    )
    assert said(made) == said(stored), "next: python -m docs.notebook"
    assert sum("output_type" in each for each in said(stored)) >= 6


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
    wrong = {"paralel": {}, "generation": {"max_new_tokens": True}}
    with pytest.raises(SpecError) as caught:
        JobSpec(name="x", model={"path": "m"}, input={"path": "p"}, **wrong)
    assert "did you mean `parallel`" in caught.value.what
    assert "`generation.max_new_tokens` should be a valid integer, not 'true'" in caught.value.what
    (tmp_path / "run" / "input").mkdir(parents=True)
    with pytest.raises(Busy, match="exists already"):
        run_here(path, run_dir=tmp_path / "run")
