"""The only module that touches the environment; each variable with its reason."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import PreflightError

# What travels from the login node to a batch job beside `slurm.env`: enough to find the interpreter, the site's
# modules (shell functions among them), caches and settings. Tokens and whatever else a login shell holds stay.
TRAVEL = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TERM", "LD_LIBRARY_PATH"),
    *("PYTHONPATH", "VIRTUAL_ENV", "CONDA_PREFIX", "BASH_ENV", "MODULEPATH", "MODULESHOME"),
    *("LMOD_CMD", "LMOD_DIR", "LMOD_PKG", "BASH_FUNC_module%%", "BASH_FUNC_ml%%", "SLURM_CONF"),
    *("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME"),
)


# Variables that hold a secret, by their names: PGPASSWORD, MYSITE_PAT. PWD and OLDPWD are directories.
_SECRET = re.compile(
    r"(?:(?:^|_)(?:TOKEN|SECRET|PASSWD|PASS|PAT|API_?KEY|ACCESS_?KEY)|_PWD|PASSWORD)$",
    re.IGNORECASE,
)
LEAST_SECRET = 8  # letters: what is shorter could be any word


def secrets() -> list[str]:
    """What this process's environment holds under the name of a secret, such as HF_TOKEN, the longest first."""
    held = {value.strip() for name, value in os.environ.items() if _SECRET.search(name)}
    # SINGULARITY_PWD is one, too.
    long = (value for value in held if len(value) >= LEAST_SECRET and not os.path.isdir(value))  # noqa: PTH112 - any text
    return sorted(long, key=len, reverse=True)


def travelling(names: Iterable[str]) -> list[str]:
    """TRAVEL and ``names``, as far as they are set here."""
    return [name for name in dict.fromkeys((*TRAVEL, *names)) if name in os.environ]


@dataclass(frozen=True)
class Slurm:
    """Where this process stands in its Slurm job."""

    job_id: str  # as squeue prints it: 123, or 123_4 in an array
    restart_count: int
    node: int
    nodes: int
    node_list: str
    array_task: int


def slurm_job() -> Slurm | None:
    """This process's Slurm job, or None outside one."""
    env = os.environ
    if "SLURM_JOB_ID" not in env:
        return None
    array_job, task = env.get("SLURM_ARRAY_JOB_ID"), env.get("SLURM_ARRAY_TASK_ID")
    return Slurm(
        job_id=f"{array_job}_{task}" if array_job else env["SLURM_JOB_ID"],
        restart_count=int(env.get("SLURM_RESTART_COUNT", "0")),
        node=int(env.get("SLURM_NODEID", "0")),
        nodes=int(env.get("SLURM_JOB_NUM_NODES", "1")),
        node_list=env.get("SLURM_JOB_NODELIST", ""),
        array_task=int(task or "0"),
    )


@dataclass(frozen=True)
class Step:
    """Where this process stands in an `srun`: node ``node`` of ``nodes``, task ``local`` of its node."""

    name: str
    node: int
    nodes: int
    local: int


def slurm_step() -> Step | None:
    """This process's place in a step of several tasks; None outside one."""
    env = os.environ
    if "SLURM_STEP_NUM_NODES" not in env:
        return None
    return Step(
        name=f"{env.get('SLURM_JOB_ID', '0')}.{env.get('SLURM_STEP_ID', '0')}",
        node=int(env.get("SLURM_NODEID", "0")),
        nodes=int(env["SLURM_STEP_NUM_NODES"]),
        local=int(env.get("SLURM_LOCALID", "0")),
    )


@dataclass(frozen=True)
class RankEnv:
    """What `accelerate launch` and our agent tell a rank."""

    rank: int
    local_rank: int
    world_size: int
    attempt: str


def rank() -> RankEnv:
    """Raises KeyError when the process was not started by `accelerate launch` under an agent."""
    env = os.environ
    return RankEnv(
        rank=int(env["RANK"]),
        local_rank=int(env["LOCAL_RANK"]),
        world_size=int(env["WORLD_SIZE"]),
        attempt=env["LAUNCHER_ATTEMPT"],
    )


def for_launch(
    attempt: str, interface: str | None, own: dict[str, str], *, script: bool = False
) -> dict[str, str]:
    """The environment of `accelerate launch` and so of its ranks. ``own`` is added last. A ``script`` of the user's
    may ask the hub, and settles such things itself."""
    env = dict(os.environ)
    for name in [name for name in env if name.startswith("ACCELERATE_")]:
        del env[name]  # a user's accelerate settings would silently change what is started
    env["LAUNCHER_ATTEMPT"] = attempt
    if not script:
        # The model is resolved before anything is queued; compute nodes have no network to ask.
        env["HF_HUB_OFFLINE"] = env["TRANSFORMERS_OFFLINE"] = "1"
        env["TOKENIZERS_PARALLELISM"] = "false"  # it deadlocks in processes that fork later
    env["PYTHONUNBUFFERED"] = "1"
    env["PYTHONSAFEPATH"] = "1"  # nothing is imported from the working directory
    if interface is not None:
        # Without these, gloo and NCCL take the first interface of the list, on many clusters a wrong one.
        env.setdefault("GLOO_SOCKET_IFNAME", interface)
        env.setdefault("NCCL_SOCKET_IFNAME", interface)
    env.update(own)
    return env


def for_script(own: dict[str, str], *, cpu: bool) -> dict[str, str]:
    """The environment of a user's script: what `accelerate launch` made of this process's, and ``own``."""
    env = {**os.environ, **own}
    env.pop("PYTHONSAFEPATH", None)  # a script imports the files beside it
    if "MASTER_ADDR" not in env:  # a world of one: plain `accelerate launch` does not say so either
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            env.pop(name, None)
    if cpu:
        env["ACCELERATE_USE_CPU"] = "true"  # without it, ranks without GPUs do not find each other
        env["CUDA_VISIBLE_DEVICES"] = ""
    return env


def with_own(own: dict[str, str]) -> dict[str, str]:
    """This process's environment and ``own``, for a command of the user's."""
    return {**os.environ, **own}


def visible_gpus() -> list[str] | None:
    """The GPUs that this process is left with, as indices or uuids; None if it may use all of its node."""
    visible = os.environ.get(
        "CUDA_VISIBLE_DEVICES"
    )  # set by Slurm, or by a user who shares a machine
    return (
        None if visible is None else [name.strip() for name in visible.split(",") if name.strip()]
    )


def cpus() -> int:
    """CPUs that this node's processes may use together. Not every Slurm binds tasks to the CPUs that it gave them,
    and threads that share a core wait for each other a hundred times longer than they compute."""
    bound = len(os.sched_getaffinity(0))
    given = os.environ.get("SLURM_CPUS_ON_NODE", "")
    return min(bound, int(given)) if given.isdecimal() else bound


def show_gpus(indices: tuple[int, ...]) -> None:
    """Leave this process only these of its node's GPUs; before torch is imported.

    Raises PreflightError where the node shows fewer than that.
    """
    visible = visible_gpus()
    names = [str(i) for i in range(max(indices, default=-1) + 1)] if visible is None else visible
    if indices and max(indices) >= len(names):
        raise PreflightError(
            f"GPU {max(indices)} is planned, and this process sees {len(names)}",
            where=os.uname().nodename,
            cause="Slurm gave fewer GPUs than resources.gpus_per_node, or CUDA_VISIBLE_DEVICES is set",
            fix="compare resources.gpus_per_node with `scontrol show job`",
        )
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names[i] for i in indices)


def crash_point() -> str | None:
    """Where a test wants this process to die; see crash.py."""
    return os.environ.get("LAUNCHER_CRASH")


def state_home() -> Path:
    """Where the per-user registry of runs lives."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "launcher"


def config_home() -> Path:
    """Where the user's own site profiles live."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "launcher"


def cache_home() -> Path:
    """Where what was measured lives: it can be measured again."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "launcher"
