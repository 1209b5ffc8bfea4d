"""Starting, resuming and cancelling: who may, and where, when schedulers refuse or do not answer."""

from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest
from jobs import launcher, write_job

from launcher import control, state
from launcher.errors import Busy, Damaged
from launcher.records import Attempt
from launcher.run import FOLDERS, Run, write_json


def fake(folder: Path, **scripts: str) -> dict[str, str]:
    """An environment whose PATH begins with shell scripts of these names."""
    folder.mkdir()
    for name, script in scripts.items():
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def status(run: Path, env: dict[str, str]) -> dict[str, Any]:
    return dict(json.loads(launcher("status", run, "--json", env=env).stdout))


def test_a_run_that_sbatch_refused_goes_to_slurm_again(tmp_path: Path) -> None:
    env = fake(tmp_path / "bin", sbatch="echo sbatch: error: no such partition >&2; exit 1")
    spec, run = write_job(tmp_path, 3), tmp_path / "run"
    assert "no such partition" in launcher("submit", spec, "--run-dir", run, code=4, env=env).stderr
    assert status(run, env)["state"] == "stopped"
    assert "no such partition" in launcher("resume", run, code=4, env=env).stderr
    assert not list(run.glob("attempts/w*"))


@pytest.mark.parametrize("squeue", ["exit 1", "echo slurm_load_jobs error >&2; exit 1"])
def test_a_queued_run_stays_queued_when_squeue_fails(tmp_path: Path, squeue: str) -> None:
    env = fake(tmp_path / "bin", sbatch="echo Submitted batch job 77", squeue=squeue)
    spec, run = write_job(tmp_path, 3), tmp_path / "run"
    jobs = json.loads(launcher("submit", spec, "--run-dir", run, "--json", env=env).stdout)["jobs"]
    assert jobs == ["77"]
    assert status(run, env)["state"] == "unknown"
    assert "77" in launcher("resume", run, code=75, env=env).stderr


def test_a_finished_job_of_a_run_that_is_not_complete_can_be_resumed(tmp_path: Path) -> None:
    gone = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
    env = fake(tmp_path / "bin", sbatch="echo Submitted batch job 78", squeue=gone)
    spec, run = write_job(tmp_path, 3), tmp_path / "run"
    launcher("submit", spec, "--run-dir", run, env=env)
    assert status(run, env)["state"] == "stopped"
    launcher("resume", run, env=env)


def test_two_processes_cant_start_a_run_at_once(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    control._take_start(run)
    with pytest.raises(Busy, match="the run is queued") as busy:
        control._take_start(run)  # this process has not yet said what its jobs are
    assert f"process {os.getpid()} on " in str(busy.value)
    write_json(run.jobs, {"scheduler": "local", "jobs": [], "start": run.starts(), "started": 0})
    control._take_start(run)  # later, not at once
    assert run.starts() == 2


def test_a_start_makes_folders_that_were_removed(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    for name in FOLDERS:
        (run.path / name).rmdir()
    control._take_start(run)
    assert {path.name for path in run.path.iterdir()} == set(FOLDERS)
    assert stat.S_IMODE((run.path / "logs").stat().st_mode) == 0o700


def test_journals_without_their_attempts_are_not_gone_on_with(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    run.journal(Attempt(0, 1), 0).touch()
    run.attempts.rmdir()
    with pytest.raises(Damaged, match="no attempts/"):
        control._take_start(run)


@pytest.mark.parametrize(
    ("said", "setup", "cause"),
    [
        ("bash: module: command not found", ["module load x"], "a line of slurm.setup failed"),
        ("slurmstepd: error: *** JOB 79 ON n1 CANCELLED AT 1 DUE TO TIME LIMIT ***", ["x"], None),
        ("srun: error: Unable to create step", ["module load x"], None),
        ("", [], None),
    ],
)
def test_a_job_that_never_came_to_its_agent(
    said: str, setup: list[str], cause: str | None, tmp_path: Path
) -> None:
    gone = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
    env = fake(tmp_path / "bin", sbatch="echo Submitted batch job 79", squeue=gone)
    spec, run = write_job(tmp_path, 3, slurm={"setup": setup}), tmp_path / "run"
    launcher("submit", spec, "--run-dir", run, env=env)
    (run / "submitit" / "79_0_log.out").write_text(f"{said}\n")
    found = status(run, env)
    assert found["state"] == "failed"
    assert found["failure"]["where"] == "Slurm job 79"
    assert (said in found["failure"]["what"], found["failure"]["cause"]) == (True, cause)


def test_whoever_looked_before_another_one_started_comes_too_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.create(tmp_path / "run")
    stand = state.stand

    def slow(run: Run) -> state.Standing:
        found = stand(run)
        monkeypatch.setattr(state, "stand", stand)
        # The other one: all of its start falls between our look and ours.
        control._take_start(run)
        noted = {"scheduler": "local", "jobs": [], "start": run.starts(), "started": 0}
        write_json(run.jobs, noted)
        return found

    monkeypatch.setattr(state, "stand", slow)
    with pytest.raises(Busy, match="somebody else is starting the run") as busy:
        control._take_start(run)
    assert f"process {os.getpid()} on " in str(busy.value)
    assert run.starts() == 1


def test_a_starter_that_was_killed_is_not_waited_for(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    control._take_start(run)
    who = json.loads(run.start(1).read_text())
    write_json(run.start(1), {**who, "pid_started": 1})
    assert state.starter(run) is None
    write_json(run.start(1), {**who, "host": "elsewhere", "pid_started": 1})
    assert state.starter(run) == f"process {os.getpid()} on elsewhere"
    dead = f"1.1@{os.uname().nodename}"
    write_json(run.jobs, {"scheduler": "local", "jobs": [dead], "start": 0, "started": 0})
    with pytest.raises(Busy, match="the run is queued") as busy:
        control._take_start(run)
    assert busy.value.cause == f"process {os.getpid()} on elsewhere"  # not the job that is gone
    write_json(run.start(1), {**who, "host": "elsewhere", "time": time.time() + 3600})
    os.utime(run.start(1), (0, 0))  # its clock was an hour ahead
    assert state.starter(run) is None


def test_a_job_that_was_never_submitted_is_resumed_on_slurm(tmp_path: Path) -> None:
    env = fake(tmp_path / "bin", sbatch="echo sbatch: error: no >&2; exit 1")
    run = tmp_path / "run"
    launcher("submit", write_job(tmp_path, 3), "--run-dir", run, code=4, env=env)
    (run / "jobs.json").unlink()  # as if it had been killed before it came to sbatch
    (run / "attempts" / "start-0001.json").unlink()
    assert control.scheduler_to_resume(Run.open(run)) == "slurm"
    launcher("resume", run, code=4, env=env)


def test_squeue_is_asked_once_for_all_runs_and_what_it_says_is_told(tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    env = fake(
        tmp_path / "bin",
        sbatch="echo Submitted batch job $$",
        squeue=f"echo x >> {asked}; echo no controller >&2; exit 1",
    )
    spec = write_job(tmp_path, 3)
    for name in ("one", "two", "three"):
        launcher("submit", spec, "--run-dir", tmp_path / name, env=env)
    asked.unlink(missing_ok=True)
    said = launcher("list", "--json", env=env)
    assert [row["state"] for row in json.loads(said.stdout)] == ["unknown"] * 3
    assert asked.read_text() == "x\n"
    assert said.stderr == "squeue: no controller\n"


def test_list_shows_a_broken_run_and_the_others(tmp_path: Path) -> None:
    env = fake(tmp_path / "bin", sbatch="echo Submitted batch job 79", squeue="exit 1")
    spec = write_job(tmp_path, 3)
    for name in ("whole", "broken", "odd"):
        launcher("submit", spec, "--run-dir", tmp_path / name, env=env)
    (tmp_path / "broken" / "input" / "meta.json").unlink()
    (tmp_path / "odd" / "jobs.json").write_text('{"scheduler": "os", "jobs": ["1"]}')
    rows = json.loads(launcher("list", "--json", env=env).stdout)
    states = {row["run"]: row["state"] for row in rows}
    assert states == {"whole": "unknown", "broken": "broken", "odd": "broken"}
    assert "whole" in launcher("list", env=env).stdout


@pytest.mark.parametrize("name", ["a\nb", "50%j", "a\\b"])
def test_a_run_path_that_sbatch_would_read_as_more_is_refused(tmp_path: Path, name: str) -> None:
    spec = write_job(tmp_path, 3)
    for command in (["submit", spec, "--dry-run"], ["run", spec]):
        said = launcher(*command, "--run-dir", tmp_path / name, code=2).stderr
        assert "can't hold control characters, %" in said
    assert "can't hold" in launcher("plan", spec, f"output.dir={tmp_path}/{name}/x", code=2).stderr


def test_what_is_not_supported_is_refused_before_anything(tmp_path: Path) -> None:
    spec = write_job(tmp_path, 3)
    for override, said in (
        ("model.attention=flash_attention_2", "flash_attention_2 runs on CUDA GPUs alone"),
        ("input.template=/nosuch", "no chat template"),
        ("slurm.time=2", "told to stop"),
    ):
        assert said in launcher("run", spec, override, "--run-dir", tmp_path / "run", code=2).stderr
    assert not (tmp_path / "run").exists()


def test_requeue_can_be_refused(tmp_path: Path) -> None:
    spec = write_job(tmp_path, 3, slurm={"requeue": False})
    script = json.loads(launcher("plan", spec, "--json").stdout)["script"]
    assert "--no-requeue" in script
    assert "--requeue" not in script.replace("--no-requeue", "")
