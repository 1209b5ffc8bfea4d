"""Slurm, through submitit: one task per node, whose pickled payload is one constant function and the run's path."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path
from typing import Any

from launcher import environ, logs
from launcher.errors import RunFailed, SlurmRefused
from launcher.job.load import load_resolved
from launcher.job.spec import JobSpec
from launcher.plan.plan import Plan
from launcher.run import Run, write_json

CLIENT_TIMEOUT_S = 10.0
# slurmstepd's word of scancel; where a limit or a node ended the job, it says DUE TO what.
SPOKEN = re.compile(
    r"DUE TO|^srun: error|^submitit ", re.MULTILINE
)  # a word of who or what ended it
CANCELLED = re.compile(r"CANCELLED AT \S+ \*\*\*")
TAIL_BYTES, TAIL_LINES = 8192, 10  # of a job's log
# Nothing is imported from the directory that the job was submitted in.
SAFE_PATH = "export PYTHONSAFEPATH=1"
# A job that starts again counts its steps from 0 again, and Slurm knows a step by its number alone: what srun on a node
# that was cut off does to its old step, it would do to that of the new start. So each start has a number of its own.
OWN_STEP = 'for _ in $(seq "${SLURM_RESTART_COUNT:-0}"); do srun --ntasks=1 --nodes=1 true; done'
# squeue's words for a job that will run, or run again, by itself.
PENDING = {
    "PENDING",
    "CONFIGURING",
    "REQUEUED",
    "REQUEUE_HOLD",
    "REQUEUE_FED",
    "RESV_DEL_HOLD",
    "SPECIAL_EXIT",
}
RUNNING = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT"}


def parameters(spec: JobSpec, plan: Plan) -> dict[str, Any]:
    """What submitit's executor is told. sbatch's own options go through as they are, by their own names."""
    options: dict[str, Any] = dict(spec.slurm.sbatch_options())
    gpus = plan.gpus_per_node
    if gpus and not {"gres", "gpus_per_node"} & set(options):
        options["gpus_per_node"] = gpus
    if spec.slurm.requeue is None:
        # After a node's failure or preemption; attempts keep their results apart.
        options["requeue"] = True
    options["export"] = ",".join(environ.travelling(spec.slurm.env))
    # Slurm gives a step one CPU per task unless it is told, whatever the job has.
    cpus = options.get("cpus_per_task")
    told = {
        "job_name": spec.name,
        "nodes": plan.nodes,
        "ntasks_per_node": 1,
        "signal_delay_s": int(spec.slurm.signal_delay),
        "array_parallelism": spec.slurm.array_parallelism,
        "setup": [
            *(["set -e", *spec.slurm.setup, "set +e"] if spec.slurm.setup else []),
            SAFE_PATH,
            OWN_STEP,
        ],
        "stderr_to_stdout": True,
        # All that the setup lines exported goes on to the tasks. A node whose task dies takes the others'
        # along at once, instead of after their deadlines.
        "srun_args": [
            *("--export=ALL", "--kill-on-bad-exit=1"),
            *([f"--cpus-per-task={cpus}"] if cpus else []),
        ],
        "additional_parameters": options,
    }
    # None keeps submitit's own defaults out; sbatch's `time` and `wckey` are among the options.
    return {key: value for key, value in told.items() if value is not None} | {
        "time": None,
        "wckey": None,
    }


def script(path: Path, spec: JobSpec, plan: Plan) -> str:
    """The text that sbatch gets for the run at ``path``. Works where there is no Slurm."""
    executor = _executor(path, spec, plan)
    if spec.slurm.array > 1:
        executor.parameters["map_count"] = spec.slurm.array
    return str(executor._make_submission_file_text(executor._submitit_command_str, ""))


def submit(run: Run, spec: JobSpec, plan: Plan) -> list[str]:
    """Queue the run; its job ids, one per world, as squeue prints them. Raises SlurmRefused."""
    import submitit

    from launcher.runtime.agent import run_agent

    _note(run, [], submitting=True)  # `resume` goes to Slurm again, also after sbatch said no
    executor = _executor(run.path, spec, plan)
    worlds = spec.slurm.array
    try:
        if worlds > 1:
            jobs = executor.map_array(run_agent, [str(run.path)] * worlds)
        else:
            jobs = [executor.submit(run_agent, str(run.path))]
    except (submitit.core.utils.FailedJobError, subprocess.CalledProcessError, OSError) as error:
        _note(run, [])
        raise SlurmRefused(
            f"sbatch refused the job: {_said(error)}",
            where=str(run.submitit),
            fix="launcher submit --dry-run shows the script; `sinfo` the partitions",
        ) from error
    ids = [job.job_id for job in jobs]
    _note(run, ids)
    return ids


def states(jobs: list[str]) -> dict[str, str]:
    """``pending``, ``running`` or ``gone`` per job by squeue; ``unknown`` where squeue does not answer. No sacct."""
    argv = ["squeue", "--noheader", "--states=all", "--array", "--format=%i|%T"]
    done = _client([*argv, "--jobs", ",".join(sorted({job.split("_")[0] for job in jobs}))])
    if done is not None and done.returncode and "Invalid job id" not in done.stderr:
        logs.get_logger().warning("squeue: %s", done.stderr.strip())
        done = None
    if done is None:
        return dict.fromkeys(jobs, "unknown")
    said = dict(line.strip().split("|", 1) for line in done.stdout.splitlines() if "|" in line)
    return {job: _state(said.get(job)) for job in jobs}


def ended_early(run: Run, jobs: list[str]) -> RunFailed | None:
    """What to tell of ``jobs`` that are gone and whose agents have never opened an attempt; None of those that never
    ran, or were cancelled."""
    setup = load_resolved(run.job).slurm.setup if jobs else []
    for job in jobs:
        log = run.submitit / f"{job}_0_log.out"
        said = log.read_text(errors="replace")[-TAIL_BYTES:] if log.exists() else None
        if said is None or CANCELLED.search(said):
            continue
        lines = said.rstrip().splitlines()[-TAIL_LINES:]
        return RunFailed(
            "the job ended before its agent had opened an attempt"
            + "".join(f"\n    | {line}" for line in lines),
            where=f"Slurm job {job}",
            cause=None if SPOKEN.search(said) or not setup else "a line of slurm.setup failed",
            fix=f"launcher resume {run.path} when that is mended (log: {log})",
        )
    return None


def stop(jobs: list[str]) -> None:
    """scancel. Raises SlurmRefused if it fails or does not answer."""
    done = _client(["scancel", "--quiet", *jobs])  # quiet: about jobs that have ended
    if done is None or done.returncode:
        why = "scancel did not answer" if done is None else done.stderr.strip()
        raise SlurmRefused(why, where=f"jobs {', '.join(jobs)}", fix="scancel them by hand")


def _note(run: Run, jobs: list[str], *, submitting: bool = False) -> None:
    noted = {"scheduler": "slurm", "jobs": jobs, "start": run.starts(), "started": time.time()}
    write_json(run.jobs, {**noted, "submitting": submitting})


def _state(word: str | None) -> str:
    if word in PENDING:
        return "pending"
    return "running" if word in RUNNING else "gone"


def _executor(path: Path, spec: JobSpec, plan: Plan) -> Any:
    from submitit.slurm.slurm import SlurmExecutor

    class Executor(SlurmExecutor):
        """submitit's, except that the script can be written where there is no srun."""

        @classmethod
        def affinity(cls) -> int:
            return 2

    executor = Executor(folder=Run(path).submitit, max_num_timeout=spec.slurm.max_restarts)
    executor.update_parameters(**parameters(spec, plan))
    return executor


def _client(argv: list[str]) -> subprocess.CompletedProcess[str] | None:
    """Run one of Slurm's clients; None if it is not here or does not answer: they wait for a dead slurmctld."""
    try:
        return subprocess.run(
            argv, capture_output=True, text=True, timeout=CLIENT_TIMEOUT_S, check=False
        )
    except OSError as error:
        logs.get_logger().warning("%s: %s", argv[0], error.strerror)
    except subprocess.TimeoutExpired:
        logs.get_logger().warning("%s gave no answer in %.0f s", argv[0], CLIENT_TIMEOUT_S)
    return None


def _said(error: BaseException) -> str:
    text = str(getattr(error, "stderr", None) or error)
    found = re.search(r"sbatch: error: (.*)", text)
    return found[1] if found else text.strip()
