"""Rank: once per process of `accelerate launch`, as `python -m launcher.runtime.rank RUN`.

It checks that the world is the planned one, joins the gang, loads its placement and enters the task.
"""

from __future__ import annotations

import hmac
import logging
import os
import sys
import time

from launcher import environ, logs
from launcher.disk import PRIVATE
from launcher.errors import PeerLost, PreflightError
from launcher.job.load import load_resolved
from launcher.job.spec import JobSpec
from launcher.plan.plan import Placement, Plan
from launcher.records import Attempt
from launcher.run import Run, read_json
from launcher.runtime import failure, process
from launcher.runtime.heartbeat import Heartbeat

# A rank that lost another one is ended from outside, and the other's error is told. Only where nobody does so
# within these seconds, as with a cut network, is the loss itself the error.
PEER_GRACE_S = 10.0


def main(path: str) -> int:
    """Exit status: 0 when the task is done or drained, else that of the error, which is left in the attempt's folder."""
    run, env = Run.open(path), environ.rank()
    attempt = Attempt.parse(env.attempt)
    _log_to(run, attempt, env.rank)
    try:
        plan = Plan.read(run.plan)
        check_world(plan, env)
        _work(run, load_resolved(run.job), plan, attempt, plan.placements[env.rank])
    except Exception as error:  # noqa: BLE001 - the last frame: the agent is told, the log has it all
        if isinstance(error, PeerLost):
            logs.get_logger().exception("a peer is lost")
            time.sleep(PEER_GRACE_S)
        return failure.leave_error(run, attempt, env.rank, error)
    return 0


def _work(run: Run, spec: JobSpec, plan: Plan, attempt: Attempt, placement: Placement) -> None:
    environ.show_gpus(placement.gpus)
    beat = Heartbeat(run, attempt, placement.rank, placement.replica, os.getpid())
    import torch

    from launcher.model.gang import Gang
    from launcher.runtime.generate import generate

    torch.set_num_threads(max(1, environ.cpus() // plan.ranks_per_node))
    beat.phase("joining")
    gang = Gang.join(placement.rank, plan.world_size, _key(run, attempt), spec.limits.join)
    logs.get_logger().info("joined %d ranks on %s", gang.size, ", ".join(sorted(set(gang.hosts))))
    if plan.ranks_of(placement.replica) == [placement.rank]:
        gang.leave()  # replicas share nothing but the ledger
    generate(run, spec, plan, placement, beat, gang)
    beat.phase("finished")
    beat.close()


def check_world(plan: Plan, env: environ.RankEnv) -> None:
    """Raises PreflightError where the world is not the planned one."""
    if env.world_size != plan.world_size:
        raise PreflightError(
            f"the world has {env.world_size} ranks, the plan {plan.world_size}",
            where=f"rank {env.rank}",
            cause="accelerate launch started another number of processes than it was told",
            fix="look for accelerate settings in slurm.setup and in the site's modules",
        )


def _key(run: Run, attempt: Attempt) -> bytes:
    """What all ranks of this attempt know, if they have the same plan, and nobody else."""
    secret = bytes.fromhex(read_json(run.attempt_file(attempt, "rendezvous"))["key"])
    return hmac.digest(secret, run.plan.read_bytes(), "sha256")


def _log_to(run: Run, attempt: Attempt, rank: int) -> None:
    """Everything this process says, libraries and crashes included, goes to the rank's own log."""
    log = os.open(
        run.log(attempt, f"rank-{rank:04d}"), os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600
    )
    os.dup2(log, 1)
    os.dup2(log, 2)
    logs.to(f"rank {rank}")
    logging.captureWarnings(True)


if __name__ == "__main__":
    process.die_with_parent()  # before the seconds of importing torch: an orphan must not outlive them
    os.umask(PRIVATE)
    status = main(sys.argv[1])
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: after an error, threads of torch or of a broken collective may never let the process end.
    os._exit(status)
