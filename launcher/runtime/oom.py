"""Processes that the kernel ended because memory ran out: how many, as of now."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class OomKills:
    """Since boot on the whole ``host``; since it was made in this process's ``own`` cgroup, which is mostly the job's."""

    host: int
    own: int

    @classmethod
    def count(cls) -> OomKills:
        return cls(_word(Path("/proc/vmstat")), sum(map(_word, _files())))

    def cause(self) -> str | None:
        """What happened since this was counted, in words; None if nothing did."""
        now = OomKills.count()
        if now.own > self.own:
            return "out of memory: the kernel has ended a process of this job for that"
        if now.host > self.host:
            return "out of memory: the kernel has ended a process of this host for that meanwhile"
        return None


def _files() -> list[Path]:
    """Where this process's cgroup counts: the second and third fields are controllers and path, of version 2 none and path."""
    found = []
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:  # a kernel without them
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            found.append(CGROUPS / path.lstrip("/") / "memory.events")
        elif controllers == "memory":
            found.append(CGROUPS / "memory" / path.lstrip("/") / "memory.oom_control")
    return found


def _word(path: Path) -> int:
    """The number after `oom_kill`; 0 where there is none, as in old kernels and in some containers."""
    try:
        words = path.read_text().split()
    except OSError:
        return 0
    return int(words[words.index("oom_kill") + 1]) if "oom_kill" in words else 0
