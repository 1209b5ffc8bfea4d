"""`launcher init`: a spec from answers, planned before it is written."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from adder import adder_path
from jobs import command, launcher

from launcher import draft
from launcher.draft import Answers, write_spec
from launcher.errors import DoesNotFit, SpecError
from launcher.job.load import load_spec
from launcher.prepare import Planned

OFFLINE = {"HF_HUB_OFFLINE": "1"}
LLAMA = "meta-llama/Llama-2-70b-hf"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "x"}\n' * 200)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


def test_from_options_to_a_run(tmp_path: Path) -> None:
    spec = tmp_path / "adder.yaml"
    said = ("--model", adder_path(), "--example", "--here", "--yes", "--max-new-tokens", "4")
    shown = launcher("init", spec, *said).stdout
    assert f"next: launcher run {spec}" in shown
    launcher("run", spec, "resources.device=cpu", "--run-dir", tmp_path / "run")
    assert len((tmp_path / "run" / "outputs.jsonl").read_text().splitlines()) == 3
    again = launcher("init", spec, *said, code=2)
    assert "--force" in again.stderr
    none = launcher(
        "init", tmp_path / "x.yaml", *said[:2], "--here", "--input", "no", "--yes", code=2
    )
    assert "--example" in none.stderr
    assert not (tmp_path / "x.yaml").exists()


def test_on_slurm_as_many_copies_as_use_the_gpus_best(folder: Path) -> None:
    answers = Answers(LLAMA, slurm=True, nodes=2, gpu="A100-80GB", partition="on")
    planned = write_spec(folder / "big job.yaml", answers)
    assert planned.plan.fits
    spec = load_spec(folder / "big job.yaml").spec
    assert (spec.name, spec.slurm.partition) == ("big-job", "on")
    # Shared by many copies, two hundred prompts make small batches: how many copies is the plan's to say.
    assert spec.parallel.replicas == len({device.replica for device in planned.plan.devices})
    assert len(planned.plan.devices) == 8
    assert (
        max(c["tokens_per_s"] for c in planned.plan.candidates)
        == planned.plan.predicted.tokens_per_s
    )


def test_the_modeline_names_a_schema_that_is_there(folder: Path) -> None:
    write_spec(folder / "job.yaml", Answers(str(adder_path())))
    first = (folder / "job.yaml").read_text().splitlines()[0]
    prefix, _, path = first.partition("$schema=")
    assert prefix == "# yaml-language-server: "
    schema = json.loads(Path(path).read_text())
    assert "model" in schema["properties"]


def test_what_does_not_fit_is_not_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_small(draft: Path, answers: Answers) -> Planned:
        planned = plan(draft, answers)
        plan_made = planned.plan.model_copy(update={"fits": False, "reasons": ["too large"]})
        return replace(planned, plan=plan_made)

    plan = draft._plan
    monkeypatch.setattr(draft, "_plan", too_small)
    with pytest.raises(DoesNotFit, match="too large"):
        write_spec(folder / "job.yaml", Answers(str(adder_path())))
    assert [path.name for path in folder.iterdir()] == ["prompts.jsonl"]


def test_a_wrong_answer_is_told_as_a_mistake_of_the_spec_that_is_not_written(folder: Path) -> None:
    answers = Answers(str(adder_path()), slurm=True, gpus_per_node=0, time="soon")
    with pytest.raises(SpecError) as caught:
        write_spec(folder / "job.yaml", answers)
    assert f"{folder}/job.yaml:" in str(caught.value) and "nothing was written" in str(caught.value)
    assert [path.name for path in folder.iterdir()] == ["prompts.jsonl"]


def test_no_answer_is_no_interruption(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    argv = command("init", tmp_path / "job.yaml")
    with subprocess.Popen(argv, stdin=theirs, stderr=subprocess.PIPE) as child:
        os.close(theirs)
        os.write(ours, b"\x04")  # ^D
        assert child.stderr is not None
        assert b"no answer was given" in child.stderr.read()
    os.close(ours)
    assert child.returncode == 2


def test_it_asks_on_a_terminal_and_again_where_there_is_no_such_thing(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    argv = command("init", tmp_path / "job.yaml", "--here")
    env = {**os.environ, **OFFLINE}
    with subprocess.Popen(
        argv, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env
    ) as child:
        os.close(theirs)
        os.write(ours, f"./ader\n{adder_path()}\nnone.jsonl\nn\n\ny\n12\n".encode())
        assert child.stdout is not None
        shown = child.stdout.read().decode()
    os.close(ours)
    assert child.returncode == 0, shown
    assert "there is no directory" in shown and "there are no prompts" in shown
    assert "most new tokens per prompt [256]" in shown
    spec = yaml.safe_load((tmp_path / "job.yaml").read_text())
    assert spec["generation"] == {"max_new_tokens": 12}
    assert (tmp_path / "prompts.jsonl").exists() and not (tmp_path / "none.jsonl").exists()
