"""The command line without ranks: what it imports, how it speaks, and what it does to the disk."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import PATIENCE_S, command, launcher, wait_for, write_job
from report_runs import Pipeline

from launcher.run import Run

CONFIGS = Path(__file__).parents[2] / "configs"
SLOW = {"torch", "transformers", "accelerate"}
PROBE = """
import sys
sys.argv = ["launcher", *{arguments!r}]
from launcher.cli import main
try:
    main()
except SystemExit as end:
    code = end.code
print([name for name in {slow!r} if name in sys.modules], code, file=sys.stderr)
"""
COMMANDS = (
    "run",
    "submit",
    "plan",
    "list",
    "status",
    "logs",
    "cancel",
    "resume",
    "verify",
    "report",
    "doctor",
    "init",
    "schema",
)


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["plan", str(CONFIGS / "llama2-70b-sequential.yaml")], ["list"], ["schema"]],
    ids=lambda words: words[0],
)
def test_commands_that_start_nothing_import_no_torch(arguments: list[str]) -> None:
    probe = PROBE.format(arguments=arguments, slow=sorted(SLOW))
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=False
    )
    assert done.stderr.splitlines()[-1] in ("[] 0", "[] None"), done.stderr
    assert done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    said = launcher(command, "--help").stdout
    assert f"Example: launcher {command}" in said
    assert "--json" in said


@pytest.mark.parametrize("group", [(), ("bench",)])
def test_groups_of_commands_have_help_with_an_example(group: tuple[str, ...]) -> None:
    assert (
        f"launcher {' '.join((*group, ''))}" in launcher(*group, "--help").stdout.splitlines()[-1]
    )


@pytest.mark.parametrize(
    ("words", "where"),
    [
        ("run", "launcher run"),
        ("status --bogus", "launcher status"),
        ("logs run --rank x", "launcher logs"),
        ("bogus", "launcher"),
        ("bench", "launcher bench"),
    ],
)
def test_a_wrong_line_is_a_document_with_json_and_a_hint_without(words: str, where: str) -> None:
    told = json.loads(launcher(*words.split(), "--json", code=2).stdout)
    assert told["where"].endswith(where)
    assert told["fix"].endswith(f"{where} --help")
    assert (told["error"], told["exit_code"]) == ("UsageError", 2)
    assert told["what"]
    said = launcher(*words.split(), code=2)
    assert "Usage: " in said.stderr
    assert said.stdout == ""


def writes_to(fifo: Path, reader: subprocess.Popen[str]) -> int | None:
    """The end to write to, once ``reader`` has opened the other one."""
    assert reader.poll() is None, reader.communicate()
    try:
        return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        assert error.errno == errno.ENXIO
        return None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_is_a_document_with_json(number: signal.Signals, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    run.job.touch()
    os.mkfifo(run.jobs)  # who reads it waits for the rest: the command is at work
    waits = subprocess.Popen(
        command("status", run.path, "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        with os.fdopen(wait_for(lambda: writes_to(run.jobs, waits)), "w"):
            # Python sees a signal that comes just before a read only after it: so let it sleep in that first.
            stat = Path(f"/proc/{waits.pid}/stat")
            wait_for(lambda: stat.read_text().rpartition(")")[2].split()[0] == "S")
            waits.send_signal(number)
            said, told = waits.communicate(timeout=PATIENCE_S)
    finally:
        waits.kill()
        waits.wait()
    assert waits.returncode == 130
    assert (json.loads(said)["error"], told) == ("Interrupted", "")


def test_plan_and_dry_run_leave_nothing_behind(tmp_path: Path) -> None:
    spec = write_job(tmp_path, 3, output={"dir": str(tmp_path / "runs")})
    before = sorted(tmp_path.rglob("*"))
    plan = json.loads(launcher("plan", spec, "--json").stdout)
    dry = json.loads(launcher("submit", spec, "--dry-run", "--json").stdout)
    assert sorted(tmp_path.rglob("*")) == before
    assert plan == dry
    assert plan["fits"] is True
    assert f"--output={tmp_path}/runs/test-0001/submitit/" in plan["script"]


def test_a_plan_that_does_not_fit_says_so_with_exit_code_3(tmp_path: Path) -> None:
    spec = CONFIGS / "llama2-70b-sequential.yaml"
    small = ("resources.gpus_per_node=1", "resources.nodes=1", "parallel.replicas=1")
    plan = json.loads(launcher("plan", spec, *small, "--json", code=3).stdout)
    assert plan["fits"] is False
    assert any("GPU" in reason for reason in plan["reasons"])


def test_the_script_asks_for_what_the_spec_says(tmp_path: Path) -> None:
    slurm = {
        "partition": "gpu",
        "time": "12:00:00",
        "array": 3,
        "exclusive": True,
        "mail-type": "END",
        "setup": ["module load cuda"],
        "signal_delay": "120s",
    }
    spec = write_job(tmp_path, 3, slurm=slurm)
    lines = json.loads(launcher("plan", spec, "--json").stdout)["script"].splitlines()
    for wanted in (
        "#SBATCH --partition=gpu",
        "#SBATCH --time=12:00:00",
        "#SBATCH --array=0-2%3",
        "#SBATCH --exclusive",
        "#SBATCH --mail-type=END",
        "#SBATCH --signal=USR2@120",
        "#SBATCH --requeue",
        "#SBATCH --job-name=test",
        "module load cuda",
    ):
        assert wanted in lines
    assert lines.index("set -e") < lines.index("module load cuda")
    assert not any(line.startswith("#SBATCH --time=5") for line in lines)


def test_secrets_of_the_shell_do_not_travel(tmp_path: Path) -> None:
    spec = write_job(tmp_path, 3, slurm={"env": ["NCCL_DEBUG"]})
    env = {"HF_TOKEN": "hf_canarycanarycanarycanarycanarycanary", "NCCL_DEBUG": "INFO"}
    said = launcher("submit", spec, "--dry-run", env=env)
    assert "canary" not in said.stdout + said.stderr
    (export,) = [line for line in said.stdout.splitlines() if "--export=PATH" in line]
    assert "NCCL_DEBUG" in export
    assert "HF_TOKEN" not in export
    assert "INFO" not in export


def test_mistakes_are_told_at_once_with_places(tmp_path: Path) -> None:
    spec = write_job(tmp_path, 3, parallel={"strateggy": "sequential"}, resources={"nodes": "two"})
    said = launcher("plan", spec, code=2).stderr
    assert "did you mean" in said
    assert said.count(f"{spec}:") == 2
    missing = launcher("plan", tmp_path / "nosuch.yaml", code=2).stderr
    assert "nosuch.yaml" in missing
    assert "Traceback" not in said + missing


def test_runs_that_are_not_there(tmp_path: Path) -> None:
    assert "no run 'nosuch'" in launcher("status", "nosuch", code=2).stderr
    assert launcher("list", "--json", cwd=tmp_path).stdout == "[]\n"


def test_logs_of_a_rank_that_the_run_has_not(tmp_path: Path) -> None:
    run = Pipeline(steps=2).write(tmp_path)
    for more in ([], ["-f"]):
        said = launcher("logs", run.path, "--rank", "4", *more, code=2).stderr
        assert f"run {run.name} has ranks 0 to 3" in said
    assert launcher("logs", run.path, "--rank", "3").stdout == ""


def complete(words: str, place: int, home: Path, shell: str = "bash") -> list[str]:
    """What the shell is offered for word ``place`` of ``words``."""
    env = {
        **os.environ,
        "XDG_STATE_HOME": str(home),
        "_LAUNCHER_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": words,
        "COMP_CWORD": str(place),
    }
    script = Path(sys.executable).with_name("launcher")
    done = subprocess.run([script], env=env, cwd=home, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_the_shell_completes_commands_and_runs(tmp_path: Path) -> None:
    for name in ("adder-0001", "adder-0002", "other-0001"):
        run = Run.create(tmp_path / "elsewhere" / name)
        run.job.write_text("name: x\n")
        state = tmp_path / "launcher" / "runs"
        state.mkdir(parents=True, exist_ok=True)
        (state / f"{name}-1.json").write_text(json.dumps({"path": str(run.path)}))
    assert complete("launcher sta", 1, tmp_path) == ["status"]
    assert set(complete("launcher resume ", 2, tmp_path)) == {
        "adder-0001",
        "adder-0002",
        "other-0001",
    }
    assert set(complete("launcher logs ad", 2, tmp_path)) == {"adder-0001", "adder-0002"}
    assert complete("launcher plan --check oth", 3, tmp_path) == ["other-0001"]
