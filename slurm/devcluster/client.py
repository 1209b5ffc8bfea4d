"""Slurm's commands, each with a deadline: they block for good when slurmctld does not answer."""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence

FINAL = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "DEADLINE"}
Completed = subprocess.CompletedProcess[str]


class DevclusterError(RuntimeError):
    """The cluster, or a command run on it, did not do what was asked."""


class Client:
    """The cluster as one sees it from a login node."""

    def __init__(self, conf: str) -> None:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH_"))}
        self.env = {**inherited, "SLURM_CONF": conf}  # nothing of a job that we may be part of

    def run(self, argv: Sequence[str], timeout: float = 120, check: bool = True) -> Completed:
        """Runs a command with this cluster's environment, its output captured as text."""
        try:
            done = subprocess.run(
                argv, env=self.env, capture_output=True, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise DevclusterError(f"no answer in {timeout} s: {' '.join(argv)}") from error
        if check and done.returncode:
            said = done.stderr.strip() or done.stdout.strip()
            raise DevclusterError(f"exit status {done.returncode}: {' '.join(argv)}\n{said}")
        return done

    def sbatch(self, *argv: str) -> str:
        """The id of the job that `sbatch argv` submits."""
        return self.run(["sbatch", "--parsable", *argv]).stdout.strip().split(";")[0]

    def srun(self, *argv: str, timeout: float = 120) -> str:
        """What `srun argv` printed."""
        return self.run(["srun", *argv], timeout).stdout

    def squeue(self, *argv: str) -> str:
        return self.run(["squeue", "--noheader", *argv]).stdout

    def scontrol(self, *argv: str) -> str:
        return self.run(["scontrol", *argv]).stdout

    def scancel(self, *argv: str) -> None:
        self.run(["scancel", *argv])

    def states(self, job: str) -> set[str]:
        """The states of a job (of an array, those of its tasks), also when it has ended."""
        return set(self.squeue("--states=all", "--array", f"--jobs={job}", "--format=%T").split())

    def wait_state(self, job: str, *wanted: str, timeout: float = 300) -> str:
        """Waits until the job is in one of the states; raises when it ended in another one.

        Of an array's tasks all must be in the same one of them; name a single task as `12_0`.
        """
        for _ in deadline(timeout, lambda: f"job {job}: not {wanted}\n{self.describe(job)}"):
            states = self.states(job)
            if len(states) == 1 and states <= set(wanted):
                break
            if states & FINAL - set(wanted):
                raise DevclusterError(f"job {job}: not {wanted}\n{self.describe(job)}")
        return states.pop()

    def describe(self, job: str) -> str:
        return self.run(["scontrol", "show", "job", job], check=False).stdout

    def node_states(self) -> dict[str, str]:
        """`idle`, `mixed`, `down*` ...; the star marks a node that does not answer."""
        lines = self.run(["sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %T"])
        return dict(line.split() for line in lines.stdout.splitlines())

    def wait_node(self, name: str, *wanted: str, timeout: float = 300) -> str:
        for _ in deadline(timeout, lambda: f"node {name}: {self.node_states()[name]}"):
            state = self.node_states()[name]
            if state in wanted:
                break
        return state

    def wait_idle(self, timeout: float = 300) -> None:
        """Waits until every node is free and answers."""
        for _ in deadline(timeout, lambda: f"nodes not idle: {self.node_states()}"):
            with contextlib.suppress(DevclusterError):  # slurmctld may be just starting
                if set(self.node_states().values()) == {"idle"}:
                    break


def deadline(seconds: float, complaint: Callable[[], str]) -> Iterator[None]:
    """Iterates with a pause in between, until the body breaks out; raises when it has not done so in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
        time.sleep(0.05)
    raise DevclusterError(f"{complaint()} after {seconds} s")
