"""The ``slurm:`` section: sbatch's own names, typed, and a few of ours beside them.

A key may be written with dashes, as sbatch does. Text goes into ``#SBATCH`` lines, so it is one
line without control characters.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from launcher.job.section import Count, Matching, Seconds, Section

_OURS = {
    *("site", "array", "array_parallelism", "setup", "env"),
    *("max_restarts", "signal_delay", "network_interface"),
}
_TIME = re.compile(
    r"(?:(?P<days>\d{1,5})-(?P<day_hours>\d{1,2})(?::(?P<day_minutes>\d{1,2})(?::(?P<day_seconds>\d{1,2}))?)?"
    r"|(?P<hours>\d{1,6}):(?P<minutes>\d{1,2}):(?P<seconds>\d{1,2})"
    r"|(?P<bare_minutes>\d{1,8}))"
)


def _minutes(text: str) -> int:
    """Minutes of an sbatch time, rounded up. Raises ValueError for what is not a time."""
    if re.fullmatch(r"\d+:\d+", text):
        raise ValueError(
            f"is ambiguous (sbatch reads minutes:seconds): write {text}:00 or 0:{text}"
        )
    match = _TIME.fullmatch(text)
    part = {k: int(v) for k, v in match.groupdict().items() if v} if match else {}
    sixties = ("day_minutes", "day_seconds", "minutes", "seconds")
    if not match or any(part.get(name, 0) > 59 for name in sixties):
        raise ValueError("should be hours:minutes:seconds, days-hours, or minutes")
    hours = part.get("days", 0) * 24 + part.get("day_hours", 0) + part.get("hours", 0)
    minutes = part.get("day_minutes", 0) + part.get("minutes", 0) + part.get("bare_minutes", 0)
    seconds = part.get("day_seconds", 0) + part.get("seconds", 0)
    total = hours * 60 + minutes + (seconds > 0)
    if total == 0:
        raise ValueError("is no time at all; UNLIMITED asks for no limit")
    return total


def _time(text: str) -> str:
    if text.upper() != "UNLIMITED":
        _minutes(text)
    return text


_TEXT_OR_LINES = {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "string"}]}


def _lines(value: Any) -> Any:
    """Setup lines may be written as one block of text."""
    return value.splitlines() if isinstance(value, str) else value


Word = Annotated[str, Matching(r"[^\x00-\x1f\x7f]{1,4096}", "one line without control characters")]
Time = Annotated[Word, AfterValidator(_time)]
Memory = Annotated[str, Matching(r"\d{1,12}[KMGTkmgt]?", "a size such as 64G")]
Variable = Annotated[str, Matching(r"[A-Za-z_][A-Za-z0-9_]*", "the name of a variable")]
Interface = Annotated[str, Matching(r"[A-Za-z0-9_.,=^@-]{1,64}", "the name of an interface")]
Flag = bool | None
Text = Word | None


class SlurmSpec(Section):
    """What sbatch is asked for, by its own names, with dashes or underscores; null leaves an option to the cluster."""

    elsewhere: ClassVar[dict[str, str]] = {
        "job_name": "the job is named by `name`",
        "nodes": "write resources.nodes",
        "ntasks": "one task runs per node; see resources.nodes and parallel",
        "ntasks_per_node": "one task runs per node; see resources.nodes and parallel",
        "gpus": "write resources.gpus_per_node",
        "gpus_per_task": "write resources.gpus_per_node",
        "output": "logs go to the run directory",
        "error": "logs go to the run directory",
        "chdir": "the job runs where it was submitted",
        "export": "`env` lists the variables that travel",
        "signal": "`signal_delay` is the time that a job has to drain",
        "clusters": "submit on a login node of the cluster that is to run the job",
        "wrap": "`setup` holds lines that run first",
    }

    # sbatch's.
    partition: Text = None
    account: Text = None
    qos: Text = None
    constraint: Text = None
    time: Time | None = None
    begin: Text = None
    deadline: Text = None
    nice: Annotated[int, Field(ge=-(2**31), le=2**31)] | None = None
    dependency: Text = None
    reservation: Text = None
    licenses: Text = None
    switches: Text = None
    nodelist: Text = None
    exclude: Text = None
    exclusive: bool | Literal["user", "mcs", "topo"] | None = None
    oversubscribe: Flag = None
    requeue: Flag = None
    gres: Text = None
    gpus_per_node: Annotated[int, Field(ge=0, le=1024)] | Word | None = None
    gpu_bind: Text = None
    gpu_freq: Text = None
    cpus_per_task: Count | None = None
    cpus_per_gpu: Count | None = None
    threads_per_core: Count | None = None
    hint: Text = None
    mem: Memory | None = None
    mem_per_cpu: Memory | None = None
    mem_per_gpu: Memory | None = None
    tmp: Memory | None = None
    mail_type: Text = None
    mail_user: Text = None
    comment: Text = None
    wckey: Text = None
    container_image: Text = None
    container_mounts: Text = None
    container_workdir: Text = None
    container_name: Text = None
    container_mount_home: Flag = None

    # Ours.
    site: str | None = Field(
        None, description="site profile whose values stand in for missing ones"
    )
    array: Annotated[int, Field(ge=1, le=1000)] = Field(
        1, description="independent worlds that share this run"
    )
    array_parallelism: Count | None = Field(None, description="worlds that may run at once")
    setup: Annotated[list[str], BeforeValidator(_lines), WithJsonSchema(_TEXT_OR_LINES)] = Field(
        default_factory=list, description="shell lines that run before the launcher on each node"
    )
    env: list[Variable] = Field(
        default_factory=list,
        description="names of variables that travel to the job beside those every process needs",
    )
    max_restarts: Annotated[int, Field(ge=0, le=1000)] = Field(
        3, description="how often a job goes back into the queue by itself"
    )
    signal_delay: Annotated[Seconds, Field(le=65535)] = Field(
        90.0, description="how long before its time limit a job is told to drain"
    )
    network_interface: Interface | None = Field(
        None, description="interface that gloo and NCCL use, where the guess is wrong"
    )

    def sbatch_options(self) -> dict[str, str | int | bool]:
        """sbatch's options that are asked for, spelled with underscores.

        True is a bare flag. A flag that is off is left out, or is sbatch's word for the opposite.
        """
        asked = self.model_dump(exclude=_OURS, exclude_none=True)
        for name in ("requeue", "container_mount_home"):
            if asked.get(name) is False:
                asked[f"no_{name}"] = True
        return {name: value for name, value in asked.items() if value is not False}

    @property
    def time_minutes(self) -> int | None:
        """The time limit in minutes, rounded up; None where none is asked for."""
        if self.time is None or self.time.upper() == "UNLIMITED":
            return None
        return _minutes(self.time)
