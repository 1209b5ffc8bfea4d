"""`task: script` before anything starts: the spec, accelerate's options, the plan, what it costs to plan."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jobs import launcher

from launcher.errors import PreflightError, SpecError
from launcher.job import accelerate
from launcher.job.load import dump_spec, json_schema, load_resolved, load_spec
from launcher.prepare import plan_job

CONFIGS = Path(__file__).parents[2] / "configs"


def write(folder: Path, **sections: Any) -> Path:
    (folder / "train.py").write_text("print('hello')\n")
    spec: dict[str, Any] = {
        "name": "train",
        "task": "script",
        "script": {"path": "train.py", "args": ["--lr", "1e-3"]},
        "resources": {"device": "cpu"},
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(spec | sections, sort_keys=False))
    return path


def planned(path: Path, *overrides: str) -> Any:
    return plan_job(path, overrides, here=False, say=lambda _: None).plan


def mistakes(path: Path, *overrides: str) -> str:
    with pytest.raises(SpecError) as caught:
        planned(path, *overrides)
    return str(caught.value).replace(f"{path.parent}/", "")


def test_the_parser_read_alone_is_that_of_the_installed_accelerate() -> None:
    from accelerate.commands.launch import launch_command_parser

    alone, _ = accelerate._parser()
    known = {str(action.option_strings[:1]): action for action in launch_command_parser()._actions}
    found = {str(action.option_strings[:1]): action for action in alone._actions}
    assert set(found) == set(known)
    for name, action in found.items():
        assert action.dest == known[name].dest
        assert action.choices == known[name].choices, name
        assert (action.default or None) == (known[name].default or None), name


def test_options_become_a_config_file_that_accelerate_reads(tmp_path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    section = accelerate.schema().model_validate(
        {
            "mixed_precision": "bf16",
            "num_cpu_threads_per_process": 2,
            "fsdp": {"version": 2, "fsdp_offload_params": True, "reshard_after_forward": False},
            "dynamo": "inductor",
        }
    )
    path = tmp_path / "accelerate.json"
    path.write_text(json.dumps(accelerate.config(section, ranks=4)))
    read = load_config_from_file(str(path))
    assert read.distributed_type == "FSDP"
    assert read.mixed_precision == "bf16"
    assert read.fsdp_config == {
        "fsdp_version": "2",
        "fsdp_offload_params": True,
        "fsdp_reshard_after_forward": False,
    }
    assert read.dynamo_config == {"dynamo_backend": "inductor"}


@pytest.mark.parametrize(
    ("ranks", "options", "kind"),
    [(1, {}, "NO"), (2, {}, "MULTI_GPU"), (1, {"fsdp": {}}, "FSDP")],
)
def test_the_kind_of_a_world(ranks: int, options: dict[str, Any], kind: str) -> None:
    chosen = accelerate.schema().model_validate(options)
    assert accelerate.config(chosen, ranks)["distributed_type"] == kind


def test_deepspeed_is_asked_for_before_anything_is_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = accelerate.schema().model_validate({"deepspeed": {"zero_stage": 3}})
    monkeypatch.setattr(accelerate.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PreflightError, match="deepspeed is not installed"):
        accelerate.config(chosen, 2)
    monkeypatch.setattr(accelerate.importlib.util, "find_spec", lambda name: name)
    made = accelerate.config(chosen, 2)
    assert made["distributed_type"] == "DEEPSPEED"
    # It would start the other nodes' processes itself, by ssh.
    assert made["deepspeed_config"] == {"zero_stage": 3, "deepspeed_multinode_launcher": "standard"}


def test_mistakes_in_accelerates_options_have_their_places(tmp_path: Path) -> None:
    path = write(tmp_path, accelerate={"mixed_precision": "bf61", "fsdp": {"versoin": 2}})
    said = mistakes(path)
    assert "job.yaml:11:20: `accelerate.mixed_precision` should be" in said
    assert "did you mean `bf16`?" in said
    assert "job.yaml:13:5: unknown key `accelerate.fsdp.versoin` (did you mean `version`?)" in said
    assert "`accelerate.fsdp.version` should be '1' or '2'" in mistakes(
        write(tmp_path, accelerate={"fsdp": {"version": 3}})
    )
    assert "num_processes" in mistakes(write(tmp_path, accelerate={"num_processes": 2}))


def test_each_task_has_its_own_sections(tmp_path: Path) -> None:
    said = mistakes(write(tmp_path, model={"path": "org/model"}))
    assert "`model` is nothing to task script" in said
    said = mistakes(write(tmp_path, task="generate"))
    for words in (
        "`model` is missing",
        "`input` is missing",
        "`script` is nothing to task generate",
    ):
        assert words in said
    path = write(tmp_path, script=None)
    said = mistakes(path, "name=", "slurm.nodse=1")
    for words in ("`script` is missing", "`name` is missing", "unknown key `slurm.nodse`"):
        assert words in said
    assert "``" not in said
    required = [each["required"] for each in json_schema()["anyOf"]]
    assert required == [["name", "task", "script"], ["name", "model", "input"]]


def test_the_spec_is_resolved_and_survives_its_file(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path)).spec
    assert spec.script is not None
    assert spec.script.path == str(tmp_path / "train.py")
    assert spec.script.directory == str(tmp_path)
    assert spec.script.args == ["--lr", "1e-3"]
    dumped = tmp_path / "resolved.yaml"
    dumped.write_text(dump_spec(spec))
    assert load_resolved(dumped) == spec
    assert "model:" not in dumped.read_text()


def test_ranks_are_the_nodes_gpus_or_as_many_as_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, resources={"nodes": 2, "gpus_per_node": 4, "gpu": "A100-80GB"})
    plan = planned(path)
    assert plan.world_size == 8
    assert [placement.node for placement in plan.placements] == [0] * 4 + [1] * 4
    assert "--gpus-per-node=4" in (launcher("submit", path, "--dry-run").stdout)
    assert planned(path, "script.processes_per_node=1").world_size == 2
    assert planned(write(tmp_path)).world_size == 1


def test_what_can_not_run_is_refused_before(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert "there is no script" in mistakes(path, "script.path=other.py")
    (tmp_path / "tool").write_text("#!/bin/sh\n")
    assert "neither a Python file nor a program" in mistakes(path, "script.path=tool")
    (tmp_path / "tool").chmod(0o755)
    assert planned(path, "script.path=tool").fits
    assert "worlds of an array" in mistakes(path, "slurm.array=2")


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    """With the words of the spec, its accelerate's options; and then all that is not there."""
    both = {"fsdp": {"versoin": 2}, "deepspeed": {"zero_stage": "x"}}
    said = mistakes(write(tmp_path, accelerate=both, resources={"nodse": 2}), "script.args=x")
    for words in (
        "unknown key `accelerate.fsdp.versoin`",
        "`accelerate.deepspeed.zero_stage` should be",
        "job.yaml:13:3: accelerate can't do fsdp and deepspeed at once (keep one)",
        "unknown key `resources.nodse`",
        "`script.args` should be a list",
    ):
        assert words in said
    path = write(
        tmp_path,
        script={"path": "nothing.py", "directory": "nowhere"},
        accelerate={"deepspeed": {"config_file": "zero.json"}},
        slurm={"array": 2, "time": "00:02:00"},
        resources={"gpus_per_node": 1, "gpu": "A100-80"},
    )
    said = mistakes(path)
    for words in (
        "job.yaml:4:9: there is no script nothing.py",
        "job.yaml:5:14: there is no folder nowhere",
        "job.yaml:11:18: there is no file zero.json",
        "job.yaml:13:10: the worlds of an array",
        "told to stop",
        "job.yaml:8:8: there is no GPU profile 'A100-80'",
    ):
        assert words in said, said


def test_planning_a_script_imports_no_torch() -> None:
    program = (
        f"import sys; sys.argv = ['launcher', 'plan', {str(CONFIGS / 'train-fsdp.yaml')!r}]\n"
        "from launcher.cli import main\n"
        "try:\n    main()\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'accelerate') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
    assert "script: 1 node, CPU, 2 ranks on each" in done.stdout
    assert "fsdp_version" in done.stdout
    assert "use_cpu" not in done.stdout, "what is in every config file"
