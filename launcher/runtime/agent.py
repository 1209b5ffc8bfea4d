"""Agent: once per node. It agrees with the other nodes' agents on an attempt, starts `accelerate launch` for
its node's ranks, watches them, and on node 0 ends the attempt and finishes the run.

Runs as `python -m launcher.runtime.agent RUN` (here) or as the payload of a submitit task (on Slurm).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from launcher import environ, ledger, logs
from launcher.disk import PRIVATE
from launcher.errors import LauncherError, NodeLost, RunFailed, SlurmRefused, Superseded
from launcher.job.load import load_resolved
from launcher.job.spec import JobSpec
from launcher.plan.plan import Plan
from launcher.plan.sums import recheck
from launcher.records import Attempt
from launcher.run import Run, read_json
from launcher.runtime import coordinator, failure, network, process, restarts, tracker
from launcher.runtime.exporter import Exporter
from launcher.runtime.launch import World, launch_argv, script_argv
from launcher.runtime.notify import notify
from launcher.runtime.outcome import Outcome, conclude, noting, raise_outcome
from launcher.runtime.rendezvous import Meeting, Node, check_start, meet
from launcher.runtime.watchdog import Watchdog

RANK_MODULE = "launcher.runtime.rank"
STOP_SIGNALS = {
    signal.SIGUSR2: "the time limit or preemption is near (SIGUSR2)",
    signal.SIGTERM: "asked to stop (SIGTERM)",
    signal.SIGINT: "interrupted (SIGINT)",
}


@dataclass
class StopRequest:
    """The first signal that asked this agent to stop, or ``deadline`` (by the monotonic clock). The handler only takes
    a note: it may run anywhere."""

    signal: int | None = None
    deadline: float = math.inf

    def install(self) -> None:
        for number in STOP_SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal = self.signal or number

    def reason(self) -> str | None:
        if self.signal is None:
            return "limits.total is used up" if time.monotonic() > self.deadline else None
        return STOP_SIGNALS[signal.Signals(self.signal)]


def run_agent(path: str) -> str:
    """The payload of a submitit task: this node's part of the run at ``path``.

    Returns the outcome's kind when it ended well or was drained, also ``superseded``: to end with an error would have
    srun end the step that the later attempt runs in. Raises the error of the rank, node or check that failed.
    """
    run = Run.open(path)
    try:
        with failure.refusals(run):
            return _run(run, Node.in_job(Plan.read(run.plan)))
    except Superseded as error:
        logs.get_logger().warning("this agent ends, and touches nothing: %s", error.what)
        return "superseded"


def _run(run: Run, node: Node) -> str:
    os.umask(PRIVATE)
    stop = StopRequest()
    stop.install()
    process.adopt_orphans()
    logs.to(f"agent node {node.index}", run.agent_log(node.world, node.index))
    spec = load_resolved(run.job)
    plan = Plan.read(run.plan)
    check_start(run, node)
    if node.index == 0:
        if node.count == 1 and run.list_attempts(node.world) and _finish(run, spec):
            with _watched(run, spec, node):
                notify(run, spec, "complete")
            return "done"  # all that was left to do was to merge
        left = _time_left(run, spec, node)
        stop.deadline = math.inf if left is None else time.monotonic() + left
    meeting = meet(run, spec, node)
    logs.get_logger().info("attempt %s, job %s", meeting.attempt.name, node.job_id)
    if node.index > 0:
        return _attempt(run, spec, plan, node, meeting, stop)
    with _watched(run, spec, node):
        return _attempt(run, spec, plan, node, meeting, stop)


def _watched(run: Run, spec: JobSpec, node: Node) -> Exporter:
    """In its context those who watch from elsewhere are told how the run is doing."""
    return Exporter(run, tracker.start(run, spec, node.world), node.world)


def _finish(run: Run, spec: JobSpec) -> bool:
    """Whether the run is complete now. Raises what keeps the results from being written."""
    try:
        return coordinator.finish(run)
    except Exception as error:
        notify(run, spec, "failed", f"the results can't be written: {error}")
        raise


def _time_left(run: Run, spec: JobSpec, node: Node) -> float | None:
    """As ``restarts.time_left``; no attempt could tell why none is opened."""
    try:
        return restarts.time_left(run, spec, node)
    except RunFailed as error:
        logs.get_logger().error("no attempt: %s", error)
        notify(run, spec, "failed", error.what)
        raise


def _attempt(
    run: Run, spec: JobSpec, plan: Plan, node: Node, meeting: Meeting, stop: StopRequest
) -> str:
    attempt = meeting.attempt
    world = World(plan.world_size, node.count, node.index, meeting.address, meeting.port)
    with meeting.lifelines, _told(run, spec, node, meeting), failure.refusals(run):
        if node.index == 0:
            recheck(Path(spec.model.path), read_json(run.weights) or {})
        child = process.start(
            _launch(run, spec, plan, world),
            run.log(attempt, f"launch-{node.index:04d}"),
            _environment(spec, plan, meeting),
            run.path,
        )
        watchdog = Watchdog(
            run, spec, plan, node.index, attempt, child, stop.reason, meeting.lifelines
        )
        outcome = watchdog.watch()
        ledger.check_current(run, attempt)
        with noting(run, outcome):
            conclude(run, attempt, node.index, outcome)
        if node.index > 0:
            return outcome.kind  # node 0 speaks for the world
        outcome = _final(run, spec, node, attempt, watchdog.gather(outcome), stop)
        with noting(run, outcome):
            ledger.end_attempt(run, attempt, asdict(outcome))
    logs.get_logger().info("attempt %s ended: %s", attempt.name, outcome.kind)
    finished = _finish(run, spec)
    again = not finished and _goes_on(node, outcome, stop)
    _tell(run, spec, outcome, finished, again)
    if again:
        _requeue(run, spec, node, attempt)
    if not finished:
        raise_outcome(outcome)
    return outcome.kind


@contextlib.contextmanager
def _told(run: Run, spec: JobSpec, node: Node, meeting: Meeting) -> Iterator[None]:
    """An error of the agent itself ends its attempt with that error, for `status` and for the other agents. Of an
    attempt that is superseded nothing is told, whatever ended it."""
    try:
        yield
    except Exception as error:
        ledger.check_current(run, meeting.attempt)
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
    """Notify whom the spec says. ``again``: the job goes back into the queue."""
    message = str(outcome.error["what"]) if outcome.error else ""
    if finished:
        notify(run, spec, "complete")
    elif outcome.kind != "done" and not again:
        notify(run, spec, "failed" if outcome.kind == "failed" else "stopped", message)


def _launch(run: Run, spec: JobSpec, plan: Plan, world: World) -> list[str]:
    """argv of this node's `accelerate launch`."""
    if spec.script is None:
        return launch_argv(world, RANK_MODULE, str(run.path))
    threads = spec.accelerate.get("num_cpu_threads_per_process")
    each = int(threads or max(1, environ.cpus() // plan.ranks_per_node))
    return script_argv(world, run.accelerate, each, str(run.path))


def _environment(spec: JobSpec, plan: Plan, meeting: Meeting) -> dict[str, str]:
    interface = spec.slurm.network_interface or network.interface_towards(
        meeting.address, meeting.port
    )
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"} if plan.world_size == 1 else {}
    script = spec.script is not None
    return environ.for_launch(meeting.attempt.name, interface, alone, script=script)


def _goes_on(node: Node, outcome: Outcome, stop: StopRequest) -> bool:
    """Whether this Slurm job has to go back into the queue: the time limit drained it, or a node was lost that nobody
    was taking away. `launcher cancel` sends no signal, scancel SIGTERM."""
    limit = stop.signal == signal.SIGUSR2 and outcome == Outcome("drained")
    lost = outcome.error is not None and outcome.error["error"] == NodeLost.__name__
    lost = lost and stop.signal in (None, signal.SIGUSR2)
    return (limit or lost) and node.job_id is not None


def _final(
    run: Run, spec: JobSpec, node: Node, attempt: Attempt, outcome: Outcome, stop: StopRequest
) -> Outcome:
    """The outcome, with a reason where a job that should go back into the queue does not."""
    if outcome == Outcome("drained") and stop.signal is None and stop.reason():
        return Outcome("drained", restarts.used_up(run, spec).as_dict())
    if not _goes_on(node, outcome, stop):
        return outcome
    reason = restarts.why_not(run, spec, node, attempt, outcome)
    if reason is None:
        return outcome
    what = outcome.error["what"] if outcome.error else "the time limit came"
    error = RunFailed(
        f"{what}; {reason}",
        where=f"Slurm job {node.job_id}",
        fix="launcher resume goes on; a longer slurm.time needs fewer restarts",
    )
    return Outcome(outcome.kind, error.as_dict())


def _requeue(run: Run, spec: JobSpec, node: Node, attempt: Attempt) -> None:
    """Put this Slurm job back into the queue. Raises SlurmRefused; Superseded where Slurm has done that itself."""
    logs.get_logger().info("requeue of job %s", node.job_id)
    try:
        restarts.requeue(run, node, attempt)
    except SlurmRefused as error:
        logs.get_logger().error("%s", error.what)
        notify(run, spec, "failed", error.what)
        raise


def main(path: str) -> int:
    """The agent of a run on this machine alone, a child of `launcher run`: one line of JSON on stdout says how it ended."""
    result: dict[str, Any]
    try:
        run = Run.open(path)
        with failure.refusals(run):
            result, code = {"outcome": _run(run, Node.alone())}, 0
    except LauncherError as error:
        result, code = error.as_dict(), error.exit_code
    except Exception as error:  # noqa: BLE001 - the last frame: whoever reads stdout is told, too
        result, code = LauncherError(f"the agent failed: {error!r}").as_dict(), 1
        with contextlib.suppress(OSError):  # a full disk may be what failed it
            traceback.print_exc()
    sys.stdout.write(json.dumps(result) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
