"""How the agents of one world agree on their attempt, and on where their ranks meet: through the run directory."""

from __future__ import annotations

import os
import secrets
import socket
import time
from dataclasses import dataclass
from typing import Any

from launcher import environ, ledger
from launcher.errors import RunFailed, Superseded
from launcher.job.spec import JobSpec
from launcher.plan.plan import Plan
from launcher.records import Attempt
from launcher.run import Run, read_json, write_json
from launcher.runtime import network, process
from launcher.runtime.lifeline import Lifelines

POLL_S = 0.2


@dataclass(frozen=True)
class Node:
    """This agent's place among the agents of its world."""

    index: int
    count: int
    world: int
    launch: str  # names one start of one job: the same on all its nodes, another after a requeue
    job_id: str | None
    restarts: int

    @classmethod
    def alone(cls) -> Node:
        """The only node of the only world, whatever Slurm allocation this shell may be in."""
        launch = f"{socket.gethostname()}.{os.getpid()}.{process.start_time(os.getpid())}"
        return cls(0, 1, 0, launch, None, 0)

    @classmethod
    def in_job(cls, plan: Plan) -> Node:
        """From Slurm's variables. Raises RunFailed where they do not fit the plan."""
        slurm = environ.slurm_job()
        if slurm is None or slurm.nodes != plan.nodes:
            raise RunFailed(
                f"the plan has {plan.nodes} nodes, the job {slurm.nodes if slurm else 'none'}",
                where=f"Slurm job {slurm.job_id}" if slurm else socket.gethostname(),
                fix="let `launcher submit` start the job",
            )
        launch = f"{slurm.job_id}.{slurm.restart_count}"
        return cls(
            slurm.node, slurm.nodes, slurm.array_task, launch, slurm.job_id, slurm.restart_count
        )


@dataclass(frozen=True)
class Meeting:
    """The attempt, the address and port at which its ranks meet, and this agent's lifelines."""

    attempt: Attempt
    address: str
    port: int
    lifelines: Lifelines


def check_start(run: Run, node: Node) -> None:
    """Raises Superseded where a later start of this Slurm job has opened an attempt: this agent was cut off so early,
    or comes so late, that it would take the work away from that one."""
    for attempt in reversed(run.list_attempts(node.world) if node.job_id else []):
        info = read_json(run.attempt_file(attempt, "attempt")) or {}
        if info.get("job_id") == node.job_id and info.get("restarts", 0) > node.restarts:
            raise Superseded(
                f"attempt {attempt.name} of a later start has taken over",
                where=f"Slurm job {node.job_id}",
                fix=f"launcher status {run.path}",
            )


def meet(run: Run, spec: JobSpec, node: Node) -> Meeting:
    """Node 0 opens the attempt and publishes the meeting; the others wait for it up to ``limits.join``.

    Raises Busy if another agent opened this world's attempt, RunFailed if node 0 does not show up.
    """
    if node.index == 0:
        return _open(run, spec, node)
    deadline = time.monotonic() + spec.limits.join
    while time.monotonic() < deadline:
        for attempt in reversed(run.list_attempts(node.world)):
            info = read_json(run.attempt_file(attempt, "attempt"))
            where = read_json(run.attempt_file(attempt, "rendezvous"))
            if info and where and info["launch"] == node.launch:
                return _call(attempt, where, node)
        time.sleep(POLL_S)
    raise RunFailed(
        f"node 0 of world {node.world} did not open its attempt within {spec.limits.join:.0f} s",
        where=f"node {node.index}, {socket.gethostname()}",
        cause="its agent did not start, or the nodes do not see the same run directory",
        fix=f"launcher logs {run.path}",
    )


def _open(run: Run, spec: JobSpec, node: Node) -> Meeting:
    info = {
        "launch": node.launch,
        "job_id": node.job_id,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "pid_started": process.start_time(os.getpid()),
        "started": time.time(),
        "beat": time.monotonic(),  # as in this agent's signs of life
        "nodes": node.count,
        "restarts": node.restarts,
    }
    attempt = ledger.open_attempt(run, node.world, info)
    address = "127.0.0.1" if node.count == 1 else network.own_address(spec.slurm.network_interface)
    port, lifelines = network.free_port(address), Lifelines()
    # The run directory is this user's alone: who knows the key is a rank of this attempt.
    where = {"address": address, "port": port, "key": secrets.token_hex(32)}
    if node.count > 1:
        where |= {"lifeline": lifelines.listen(address), "token": lifelines.token}
    write_json(run.attempt_file(attempt, "rendezvous"), where)
    return Meeting(attempt, address, port, lifelines)


def _call(attempt: Attempt, where: dict[str, Any], node: Node) -> Meeting:
    lifelines = Lifelines()
    lifelines.call(where["address"], where["lifeline"], where["token"], node.index)
    return Meeting(attempt, where["address"], where["port"], lifelines)
