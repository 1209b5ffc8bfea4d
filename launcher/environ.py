"""The only module that touches the environment; each variable with its reason."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Slurm:
    """Where this process stands in its Slurm job."""

    job_id: str  # as squeue prints it: 123, or 123_4 in an array
    restart_count: int
    node: int
    nodes: int
    node_list: str
    array_task: int


def slurm() -> Slurm | None:
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


def state_home() -> Path:
    """Where the per-user registry of runs lives."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "launcher"


def config_home() -> Path:
    """Where the user's own site profiles live."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "launcher"
