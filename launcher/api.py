"""The commands as Python functions: what `from launcher import ...` gives. docs/python-api.md shows them.

Nothing here prints or exits; what a command would end with is raised, as a LauncherError. No torch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from launcher import control, ledger, prepare, registry, state
from launcher.disk import read_json
from launcher.doctor import examine
from launcher.doctor.finding import Finding
from launcher.errors import RunFailed
from launcher.job.load import json_schema, loaded_from
from launcher.job.spec import JobSpec
from launcher.plan.plan import Plan
from launcher.report import logs
from launcher.report.html import write_report
from launcher.run import Run as RunDirectory
from launcher.runtime import coordinator
from launcher.state import RunState

Spec = str | Path | JobSpec


def plan_job(
    spec: Spec, overrides: Sequence[str] = (), *, here: bool = False, verify: bool = False
) -> Plan:
    """`launcher plan`: whether a job fits and what sits where, with the sbatch script unless it is for this machine
    (``here``). Starts and writes nothing.

    ``spec`` is a file, or a JobSpec, whose relative paths begin at the working directory; ``overrides`` are
    ``key=value`` as on the command line; ``verify`` compares the weights with their recorded sha256
    (`--verify-weights`). Raises SpecError, UsageError, PreflightError.
    """
    planned = _planned(spec, overrides, here=here, verify=verify, fetch=False)
    return planned.plan if here else prepare.with_script(planned, None).plan


def submit(
    spec: Spec,
    overrides: Sequence[str] = (),
    *,
    run_dir: Path | str | None = None,
    verify: bool = False,
) -> Run:
    """`launcher submit`: send a job to Slurm; returns at once. Raises as ``plan_job``, DoesNotFit, SlurmRefused."""
    planned = _planned(spec, overrides, here=False, verify=verify)
    made = prepare.create_run(planned, None if run_dir is None else Path(run_dir))
    control.start_on_slurm(made)
    return Run(made.path)


def run_here(
    spec: Spec,
    overrides: Sequence[str] = (),
    *,
    run_dir: Path | str | None = None,
    verify: bool = False,
) -> Run:
    """`launcher run`: run a job on this machine; returns when it is complete, with failed rows in ``Run.errors``.
    An interrupt (^C) stops it after the current step. Raises as ``plan_job``, DoesNotFit, RunFailed."""
    planned = _planned(spec, overrides, here=True, verify=verify)
    made = prepare.create_run(planned, None if run_dir is None else Path(run_dir))
    return _foreground(Run(made.path))


def list_runs() -> list[Run]:
    """`launcher list`: the runs that there are, the latest last."""
    return [Run(found.path) for found in registry.list_runs()]


def diagnose(folder: str | Path = "runs") -> list[Finding]:
    """`launcher doctor`: what would hurt a run that is submitted or run here; ``folder`` is where runs go. Each finding
    has a ``status`` (ok, note, warning, problem), what it ``says``, and a ``remedy``."""
    return examine.login_node(Path(folder))


def job_schema() -> dict[str, Any]:
    """`launcher schema`: the JSON Schema of a job spec."""
    return json_schema()


class Run:
    """A run that exists: its directory, its name, a Slurm job's id, or None for the latest, as on the command line.

    Raises UsageError if there is none.
    """

    def __init__(self, reference: str | Path | None = None) -> None:
        found = registry.find(None if reference is None else str(reference))
        self.directory: RunDirectory = found
        self.path: Path = found.path
        self.name: str = found.name

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def status(self) -> RunState:
        """`launcher status`: ``state`` (queued, running, complete, stopped, failed, unknown), rows, speed, ranks,
        and why it failed if it did."""
        return state.look(self.directory)

    def wait(self, timeout_s: float | None = None, poll_s: float = 2.0) -> RunState:
        """The state in which the run is over, or after ``timeout_s`` (None: no limit)."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while state.alive(seen := self.status()) and (end is None or time.monotonic() < end):
            time.sleep(poll_s)
        return seen

    def cancel(self) -> list[str]:
        """`launcher cancel`: stop it, finished rows are kept; the jobs that were stopped."""
        return control.cancel(self.directory)

    def resume(self) -> Run:
        """`launcher resume`: go on where it was started. On Slurm this returns at once, here when the run is complete.
        Results of a complete run that were removed are gathered again. Raises Busy if somebody is at it, SlurmRefused,
        RunFailed."""
        scheduler = control.scheduler_to_resume(self.directory)
        if scheduler is None:
            coordinator.restore(self.directory)
        elif scheduler == "local":
            return _foreground(self)
        else:
            control.start_on_slurm(self.directory)
        return self

    def verify(self) -> list[str]:
        """`launcher verify`: what is wrong with a complete run's results; nothing if they keep their promises."""
        return ledger.verify(self.directory)

    def report(self) -> Path:
        """`launcher report`: write report.html, also while the run is under way."""
        write_report(self.directory)
        return self.directory.report

    def logs(self, rank: int | None = None) -> Iterator[tuple[str, str]]:
        """`launcher logs`: (who, line) of what agents and ranks have said. Raises UsageError for a rank that it has
        not."""
        return logs.read(self.directory, rank)

    def plan(self) -> Plan:
        """The plan that it was made with."""
        return Plan.read(self.directory.plan)

    def summary(self) -> dict[str, Any] | None:
        """summary.json of a complete run: what was measured, beside what was predicted; None before."""
        found: dict[str, Any] | None = read_json(self.directory.summary)
        return found

    def outputs(self) -> Iterator[dict[str, Any]]:
        """The rows of outputs.jsonl in input order. Raises RunFailed while the run is not complete."""
        return self._rows(self.directory.outputs)

    def errors(self) -> Iterator[dict[str, Any]]:
        """The rows of errors.jsonl in input order. Raises RunFailed while the run is not complete."""
        return self._rows(self.directory.errors)

    def _rows(self, path: Path) -> Iterator[dict[str, Any]]:
        if not path.exists():
            raise RunFailed(
                "the run has no results yet", where=str(self.path), fix="Run.status() says why"
            )
        with path.open("rb") as lines:
            yield from map(json.loads, lines)


def _planned(
    spec: Spec, overrides: Sequence[str], *, here: bool, verify: bool, fetch: bool = True
) -> prepare.Planned:
    given = loaded_from(spec, overrides) if isinstance(spec, JobSpec) else Path(spec)
    return prepare.plan_job(
        given, overrides, here=here, say=lambda _: None, fetch=fetch, verify=verify
    )


def _foreground(run: Run) -> Run:
    job = control.start_here(run.directory)
    try:
        job.result()
    except KeyboardInterrupt:
        job.stop()
        job.agent.wait()
        raise
    if not run.directory.manifest.exists():
        raise RunFailed(
            "the run stopped before it was done", where=str(run.path), fix="Run.resume() goes on"
        )
    return run
