"""Slurm as this program uses it: its clients, its controller, and the settings that matter to a run."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator

from launcher.doctor.finding import Finding, ask
from launcher.job.site import site_folders, site_names

AREA = "slurm"
CLIENTS = ("sbatch", "squeue", "scancel", "scontrol", "srun")
Settings = dict[str, str]


def is_here() -> bool:
    """Whether this machine is part of a Slurm cluster, as far as its commands tell."""
    return shutil.which("sbatch") is not None


def examine() -> Iterator[Finding]:
    """Clients, controller, settings, partitions; little where there is no Slurm."""
    absent = [name for name in CLIENTS if shutil.which(name) is None]
    if len(absent) == len(CLIENTS):
        says = "none on this machine: `launcher run` works here, `launcher submit` does not"
        yield Finding(AREA, "clients", "note", says)
        return
    if absent:
        says = f"not on the PATH: {', '.join(absent)}"
        yield Finding(AREA, "clients", "problem", says, "put Slurm's bin directory on the PATH")
        return
    text = ask(["scontrol", "show", "config"])
    if text is None:
        says = "slurmctld does not answer"
        yield Finding(AREA, "controller", "problem", says, "scontrol ping; ask the administrators")
        return
    settings = read_settings(text)
    yield Finding(AREA, "controller", "ok", f"Slurm {settings.get('SLURM_VERSION', '?')} answers")
    yield from judge(settings)
    yield from partitions(ask(["sinfo", "--noheader", "--format=%R|%a|%l|%D|%G"]) or "")
    yield from _accounts(settings)
    yield _site()


def read_settings(text: str) -> Settings:
    """`scontrol show config` as a mapping."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def judge(settings: Settings) -> Iterator[Finding]:
    """The settings that decide how runs end, restart and are kept apart."""
    yield _accounting(settings)
    yield _tracking(settings)
    yield from _preemption(settings)
    if "gpu" not in settings.get("GresTypes", "").split(","):
        says = "Slurm counts no GPUs (GresTypes has no gpu): a job that asks for GPUs is refused"
        remedy = (
            "for CPU jobs: resources.device: cpu; else ask the administrators for GresTypes=gpu"
        )
        yield Finding(AREA, "GPUs", "warning", says, remedy)
    else:
        yield Finding(AREA, "GPUs", "ok", "are counted as GRES")
    wait = _number(settings.get("KillWait"))
    if wait is not None:
        says = f"a cancelled job has {wait} s from SIGTERM to SIGKILL (KillWait)"
        yield Finding(AREA, "ending", "ok" if wait >= 10 else "note", says)
    deaf = _number(settings.get("SlurmdTimeout"))
    if deaf:
        says = f"a dead node is noticed after {deaf} s (SlurmdTimeout), then its job is requeued"
        yield Finding(AREA, "node failure", "ok" if deaf <= 600 else "note", says)
    largest = _number(settings.get("MaxArraySize"))
    if largest:
        yield Finding(AREA, "arrays", "ok", f"slurm.array may be up to {largest - 1}")


def partitions(text: str) -> Iterator[Finding]:
    """What there is to ask for: sinfo's lines `partition|state|time limit|nodes|GRES`."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, state, limit, nodes, gres = [*line.strip().split("|"), "", "", "", ""][:5]
        if state == "up":
            gpus = ", ".join(re.findall(r"gpu[^,(]*", gres)) or "no GPUs"
            found.setdefault(name, []).append(f"{nodes} nodes with {gpus}, {limit}")
    if not found:
        yield Finding(AREA, "partitions", "problem", "none is up", "sinfo; ask the administrators")
    for name, kinds in found.items():
        yield Finding(AREA, f"partition {name}", "ok", "; ".join(kinds))


def _accounting(settings: Settings) -> Finding:
    kind = settings.get("AccountingStorageType", "")
    if kind in ("", "(null)", "accounting_storage/none"):
        says = "none: sacct does not answer here; nothing in this program needs it"
        return Finding(AREA, "accounting", "note", says)
    return Finding(AREA, "accounting", "ok", kind.removeprefix("accounting_storage/"))


def _tracking(settings: Settings) -> Finding:
    kind = settings.get("ProctrackType", "").removeprefix("proctrack/")
    if kind == "pgid":
        says = "proctrack/pgid does not see ranks, which have sessions of their own: they may outlive a killed job"
        remedy = "ask the administrators for proctrack/cgroup"
        return Finding(AREA, "process tracking", "warning", says, remedy)
    return Finding(AREA, "process tracking", "ok", kind or "not said")


def _preemption(settings: Settings) -> Iterator[Finding]:
    mode = settings.get("PreemptMode", "OFF")
    if mode.upper() in ("OFF", "GANG"):
        return
    told = "send_user_signal" in settings.get("PreemptParameters", "")
    says = f"jobs may be preempted ({mode}); "
    says += (
        "they are told before (USR2)" if told else "SIGTERM and the partition's GraceTime are all"
    )
    remedy = None if told else "finished rows are safe, rows in flight are computed again"
    yield Finding(AREA, "preemption", "ok" if told else "note", says, remedy)


def _accounts(settings: Settings) -> Iterator[Finding]:
    if "slurmdbd" not in settings.get("AccountingStorageType", ""):
        return
    me = ask(["id", "-un"]) or ""
    argv = ["sacctmgr", "--noheader", "--parsable2", "show", "associations", f"user={me.strip()}"]
    rows = ask([*argv, "format=account"])
    accounts = sorted({line.strip() for line in (rows or "").splitlines() if line.strip()})
    if accounts:
        yield Finding(AREA, "accounts", "ok", f"yours: {', '.join(accounts)}")


def _site() -> Finding:
    own = site_folders()[0]
    if (own / "default.yaml").is_file():
        return Finding(AREA, "site profile", "ok", str(own / "default.yaml"))
    says = f"no default.yaml in {own}: every spec says partition, account and time itself"
    remedy = f"copy one of slurm/sites there ({', '.join(site_names())}) and change it"
    return Finding(AREA, "site profile", "note", says, remedy)


def _number(value: str | None) -> int | None:
    found = re.match(r"\d+", value or "")
    return int(found[0]) if found else None
