"""Agent: once per node. It agrees with the other nodes' agents on an attempt, starts `accelerate launch` for
its node's ranks, watches them, and on node 0 ends the attempt and finishes the run.

Runs as `python -m launcher.runtime.agent RUN` (here) or as the payload of a submitit task (on Slurm).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any

from launcher import environ, ledger, logs
from launcher.errors import LauncherError, RunFailed, SlurmRefused
from launcher.job.load import load_resolved
from launcher.job.spec import JobSpec
from launcher.plan.plan import Plan
from launcher.run import Run
from launcher.runtime import coordinator, network, process
from launcher.runtime.exporter import Exporter
from launcher.runtime.launch import World, launch_argv
from launcher.runtime.notify import notify
from launcher.runtime.rendezvous import Meeting, Node, meet
from launcher.runtime.watchdog import Outcome, Watchdog, conclude, raise_outcome

RANK_MODULE = "launcher.runtime.rank"
STOP_SIGNALS = {
    signal.SIGUSR2: "the time limit or preemption is near (SIGUSR2)",
    signal.SIGTERM: "asked to stop (SIGTERM)",
    signal.SIGINT: "interrupted (SIGINT)",
}


@dataclass
class StopRequest:
    """The first signal that asked this agent to stop. The handler only takes a note: it may run anywhere."""

    signal: int | None = None

    def install(self) -> None:
        for number in STOP_SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal = self.signal or number

    def reason(self) -> str | None:
        return None if self.signal is None else STOP_SIGNALS[signal.Signals(self.signal)]


def run_agent(path: str) -> str:
    """The payload of a submitit task: this node's part of the run at ``path``.

    Returns the outcome's kind when it ended well or was drained; raises the error of the rank, node or check
    that failed.
    """
    run = Run.open(path)
    return _run(run, Node.in_job(Plan.model_validate_json(run.plan.read_bytes())))


def _run(run: Run, node: Node) -> str:
    stop = StopRequest()
    stop.install()
    process.adopt_orphans()
    logs.to(f"agent node {node.index}", run.agent_log(node.world, node.index))
    spec = load_resolved(run.job)
    plan = Plan.model_validate_json(run.plan.read_bytes())
    meeting = meet(run, spec, node)
    logs.get_logger().info("attempt %s, job %s", meeting.attempt.name, node.job_id)
    with Exporter(run) if node.index == 0 else contextlib.nullcontext():
        return _attempt(run, spec, plan, node, meeting, stop)


def _attempt(
    run: Run, spec: JobSpec, plan: Plan, node: Node, meeting: Meeting, stop: StopRequest
) -> str:
    attempt = meeting.attempt
    world = World(plan.world_size, node.count, node.index, meeting.address, meeting.port)
    with _told(run, spec, node, meeting):
        child = process.start(
            launch_argv(world, RANK_MODULE, str(run.path)),
            run.log(attempt, f"launch-{node.index:04d}"),
            _environment(spec, plan, meeting),
            run.path,
        )
        watchdog = Watchdog(run, spec, plan, node.index, attempt, child, stop.reason)
        outcome = watchdog.watch()
        conclude(run, attempt, node.index, outcome)
        if node.index > 0:
            return outcome.kind  # node 0 speaks for the world
        outcome = _final(spec, node, watchdog.gather(outcome), stop)
    ledger.end_attempt(run, attempt, asdict(outcome))
    logs.get_logger().info("attempt %s ended: %s", attempt.name, outcome.kind)
    try:
        finished = coordinator.finish(run)
    except Exception as error:
        notify(run, spec, "failed", f"the results can't be written: {error}")
        raise
    _tell(run, spec, outcome, finished, _near_limit(node, outcome, stop))
    if not finished:
        raise_outcome(outcome)
        _requeue(node, outcome, stop)
    return outcome.kind


@contextlib.contextmanager
def _told(run: Run, spec: JobSpec, node: Node, meeting: Meeting) -> Iterator[None]:
    """An error of the agent itself ends its attempt with that error, for `status` and for the other agents."""
    try:
        yield
    except Exception as error:
        told = (
            error
            if isinstance(error, LauncherError)
            else LauncherError(f"the agent failed: {error!r}")
        )
        told.where = told.where or f"agent of node {node.index} on {os.uname().nodename}"
        outcome = Outcome("failed", told.as_dict())
        logs.get_logger().exception("attempt %s failed", meeting.attempt.name)
        with contextlib.suppress(
            OSError
        ):  # where nothing can be written, the first error is the one to tell
            conclude(run, meeting.attempt, node.index, outcome)
            if node.index == 0:
                ledger.end_attempt(run, meeting.attempt, asdict(outcome))
        if node.index == 0:
            notify(run, spec, "failed", told.what)
        raise


def _tell(run: Run, spec: JobSpec, outcome: Outcome, finished: bool, again: bool) -> None:
    """Notify whom the spec says. ``again``: the job goes back into the queue, unless the outcome has an error."""
    message = str(outcome.error["what"]) if outcome.error else ""
    if finished:
        notify(run, spec, "complete")
    elif outcome.kind == "failed":
        notify(run, spec, "failed", message)
    elif outcome.kind == "drained" and (message or not again):
        notify(run, spec, "stopped", message)


def _environment(spec: JobSpec, plan: Plan, meeting: Meeting) -> dict[str, str]:
    interface = spec.slurm.network_interface or network.interface_towards(
        meeting.address, meeting.port
    )
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"} if plan.world_size == 1 else {}
    return environ.for_launch(meeting.attempt.name, interface, alone)


def _near_limit(node: Node, outcome: Outcome, stop: StopRequest) -> bool:
    """Whether the time limit drained this Slurm job; a cancel has no signal."""
    told = stop.signal == signal.SIGUSR2 and outcome.kind == "drained"
    return told and node.job_id is not None


def _final(spec: JobSpec, node: Node, outcome: Outcome, stop: StopRequest) -> Outcome:
    """The outcome, with a reason where a drained job does not go back into the queue."""
    if not _near_limit(node, outcome, stop) or node.restarts < spec.slurm.max_restarts:
        return outcome
    error = RunFailed(
        f"the time limit came {node.restarts + 1} times, and slurm.max_restarts is {spec.slurm.max_restarts}",
        where=f"Slurm job {node.job_id}",
        fix="launcher resume goes on; a longer slurm.time needs fewer restarts",
    )
    return Outcome("drained", error.as_dict())


def _requeue(node: Node, outcome: Outcome, stop: StopRequest) -> None:
    """Back into the queue when the time limit drained this job and rows are left."""
    if not _near_limit(node, outcome, stop):
        return
    logs.get_logger().info("requeue of job %s", node.job_id)
    argv = ["scontrol", "requeue", str(node.job_id)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise SlurmRefused(
            f"scontrol requeue: {done.stderr.strip()}",
            where=f"job {node.job_id}",
            fix="launcher resume",
        )


def main(path: str) -> int:
    """The agent of a run on this machine alone, a child of `launcher run`: one line of JSON on stdout says how it ended."""
    result: dict[str, Any]
    try:
        result, code = {"outcome": _run(Run.open(path), Node.alone())}, 0
    except LauncherError as error:
        result, code = error.as_dict(), error.exit_code
    except Exception as error:  # noqa: BLE001 - the last frame: whoever reads stdout is told, too
        result, code = LauncherError(f"the agent failed: {error!r}").as_dict(), 1
        with contextlib.suppress(OSError):  # a full disk may be what failed it
            traceback.print_exc()
    sys.stdout.write(json.dumps(result) + "\n")
    return code


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main(sys.argv[1]))
