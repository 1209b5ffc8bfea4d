"""The reference is what the code says now, and the code says what each thing is."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path
from typing import Any

import pytest

from launcher import errors
from launcher.job import accelerate
from launcher.job.section import Section
from launcher.job.slurm import SlurmSpec
from launcher.job.spec import JobSpec

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "reference"
MADE: dict[str, Any] = runpy.run_path(str(FOLDER / "__main__.py"))
PAGES: dict[str, str] = MADE["pages"]()


@pytest.mark.parametrize("name", sorted(PAGES))
def test_pages_are_what_the_code_says(name: str) -> None:
    told = (FOLDER / name).read_text(encoding="utf-8")
    assert told == PAGES[name], f"{name} is not up to date; next: python -m docs.reference"


def test_no_page_is_left_over() -> None:
    assert sorted(path.name for path in FOLDER.glob("*.md")) == sorted(PAGES)


def test_every_key_of_a_spec_is_described() -> None:
    sections = [JobSpec, *Section.__subclasses__()]
    bare = {
        f"{section.__name__}.{name}"
        for section in sections
        for name, field in section.model_fields.items()
        if section.__module__.startswith("launcher.job") and not field.description
        if section.__module__ != accelerate.__name__  # those are accelerate's own options
        if MADE["section_of"](field.annotation) is None
    }
    sbatch = {f"SlurmSpec.{name}" for name in SlurmSpec.model_fields}
    assert bare - sbatch == set()
    assert {name for name in bare & sbatch if "restart" in name or "signal" in name} == set()


def test_every_command_and_option_says_what_it_is_for() -> None:
    for path, command in MADE["walk"](MADE["typer"].main.get_command(MADE["app"]), "launcher"):
        assert command.help, path
        for parameter in command.params:
            assert parameter.help, f"{path} {parameter.name}"


def test_every_exit_code_is_explained() -> None:
    used = {kind.exit_code for kind in MADE["family"](errors.LauncherError)}
    for file in (ROOT / "launcher" / "cli").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("typer.Exit", "sys.exit"):
                used |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    assert used <= set(errors.EXIT_CODES)
    assert set(errors.EXIT_CODES) - used == {0}
