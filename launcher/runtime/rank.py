"""Rank: once per process of `accelerate launch`, as `python -m launcher.runtime.rank RUN`.

It checks that the world is the planned one, joins the gang, loads its placement and enters the task.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
import zlib

from launcher import environ, logs
from launcher.errors import LauncherError, PeerLost, PreflightError
from launcher.job.load import load_resolved
from launcher.job.spec import JobSpec
from launcher.plan.plan import Placement, Plan
from launcher.records import Attempt
from launcher.run import Run, write_json
from launcher.runtime import process
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
        plan = Plan.model_validate_json(run.plan.read_bytes())
        _check_world(plan, env)
        _work(run, load_resolved(run.job), plan, attempt, plan.placements[env.rank])
    except LauncherError as error:
        if isinstance(error, PeerLost):
            traceback.print_exc()
            time.sleep(PEER_GRACE_S)
        return _leave_error(run, attempt, env.rank, error)
    except Exception as error:  # noqa: BLE001 - the last frame: the agent is told, the log has it all
        told = f"{type(error).__name__}: {error}"
        return _leave_error(run, attempt, env.rank, LauncherError(told, where=f"rank {env.rank}"))
    return 0


def _work(run: Run, spec: JobSpec, plan: Plan, attempt: Attempt, placement: Placement) -> None:
    environ.show_gpus(placement.gpus)
    beat = Heartbeat(run, attempt, placement.rank, placement.replica, os.getpid())
    import torch

    from launcher.model.gang import Gang
    from launcher.runtime.generate import generate

    torch.set_num_threads(max(1, environ.cpus() // plan.ranks_per_node))
    beat.phase("joining")
    gang = Gang.join(placement.rank, plan.world_size, _fingerprint(run, attempt), spec.limits.join)
    logs.get_logger().info("joined %d ranks on %s", gang.size, ", ".join(sorted(set(gang.hosts))))
    if plan.ranks_of(placement.replica) == [placement.rank]:
        gang.leave()  # replicas share nothing but the ledger
    generate(run, spec, plan, placement, beat, gang)
    beat.phase("finished")
    beat.close()


def _check_world(plan: Plan, env: environ.RankEnv) -> None:
    if env.world_size != plan.world_size:
        raise PreflightError(
            f"the world has {env.world_size} ranks, the plan {plan.world_size}",
            where=f"rank {env.rank}",
            cause="accelerate launch started another number of processes than it was told",
            fix="look for accelerate settings in slurm.setup and in the site's modules",
        )


def _fingerprint(run: Run, attempt: Attempt) -> int:
    return zlib.crc32(f"{run.path}\n{attempt.name}".encode() + run.plan.read_bytes())


def _log_to(run: Run, attempt: Attempt, rank: int) -> None:
    """Everything this process says, libraries and crashes included, goes to the rank's own log."""
    log = os.open(
        run.log(attempt, f"rank-{rank:04d}"), os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600
    )
    os.dup2(log, 1)
    os.dup2(log, 2)
    logs.to(f"rank {rank}")
    logging.captureWarnings(True)


def _leave_error(run: Run, attempt: Attempt, rank: int, error: LauncherError) -> int:
    traceback.print_exc()
    host = os.uname().nodename
    error.where = f"rank {rank} on {host}" + (f", {error.where}" if error.where else "")
    error.fix = (
        error.fix or f"see {run.log(attempt, f'rank-{rank:04d}')}; launcher resume {run.path}"
    )
    write_json(run.rank_error(attempt, rank), error.as_dict())
    return error.exit_code


if __name__ == "__main__":
    process.die_with_parent()  # before the seconds of importing torch: an orphan must not outlive them
    os.umask(0o077)
    status = main(sys.argv[1])
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: after an error, threads of torch or of a broken collective may never let the process end.
    os._exit(status)
