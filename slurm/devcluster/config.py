"""The files that a cluster reads: slurm.conf, gres.conf, hosts and nsswitch.conf, with the timings of a cluster for tests."""

import os
import secrets
import socket
import stat
import time
from dataclasses import dataclass
from pathlib import Path

HEAD = "ctl"  # the host that runs munged and slurmctld


@dataclass(frozen=True)
class Shape:
    """What the nodes claim to have; Slurm schedules by it, whatever the machine really has."""

    nodes: int = 4
    gpus: int = 4
    cpus: int = 8
    memory_mb: int = 16000

    @property
    def names(self) -> list[str]:
        return [f"n{number}" for number in range(1, self.nodes + 1)]


def addresses(shape: Shape, network: str) -> dict[str, str]:
    """Every host's address in the /24 whose first three numbers are `network`."""
    nodes = {name: f"{network}.{10 + number}" for number, name in enumerate(shape.names, 1)}
    return {HEAD: f"{network}.1", **nodes}


def write(folder: Path, shape: Shape, network: str, machine: str) -> None:
    """Everything below `folder` that the daemons want to find; `machine` is this machine's own address in the network."""
    for name in ("etc", "run", "dev", "spool"):
        (folder / name).mkdir()
    for name in ("state", "munge"):
        (folder / name).mkdir(mode=0o700)
    where = addresses(shape, network)
    etc = folder / "etc"
    (etc / "hosts").write_text(_hosts({**where, socket.gethostname(): machine}))
    (etc / "nsswitch.conf").write_text(_nsswitch(Path("/etc/nsswitch.conf").read_text()))
    (etc / "slurm.conf").write_text(_slurm(folder, shape, where))
    (etc / "gres.conf").write_text(_gres(folder / "dev", shape.gpus))
    key = folder / "munge" / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))


def _hosts(names: dict[str, str]) -> str:
    lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in names.items())]
    return "\n".join(lines) + "\n"


def _nsswitch(text: str) -> str:
    # No name server can be reached from inside: one DNS look-up would hang for ten seconds.
    kept = [line for line in text.splitlines() if not line.startswith("hosts:")]
    return "\n".join([*kept, "hosts: files"]) + "\n"


def _gres(devices: Path, gpus: int) -> str:
    # Slurm insists on character devices; these are all /dev/null (1, 3).
    for number in range(gpus):
        device = devices / f"nvidia{number}"
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    files = f"Name=gpu Type=a100 File={devices}/nvidia[0-{gpus - 1}]\n" if gpus else ""
    return "AutoDetect=off\n" + files


def _slurm(folder: Path, shape: Shape, where: dict[str, str]) -> str:
    gres = f"Gres=gpu:a100:{shape.gpus} " if shape.gpus else ""
    node = f"CPUs={shape.cpus} RealMemory={shape.memory_mb} {gres}Feature=a100 State=UNKNOWN"
    nodes = [f"NodeName={name} NodeAddr={where[name]} {node}" for name in shape.names]
    # Job ids of two clusters should differ: people and run directories remember them.
    first = int(time.time()) % 60_000_000 + 1000
    head = SLURM.format(folder=folder, head=HEAD, address=where[HEAD], first=first)
    return head + "\n".join(nodes) + "\n" + PARTITIONS


SLURM = """\
ClusterName=devcluster
SlurmctldHost={head}({address})
FirstJobId={first}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits for cred_expire and one second more (the default makes that 121 s).
AuthInfo=socket={folder}/run/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
SlurmctldDebug=verbose
SlurmdDebug=verbose

# What a machine of any size can carry: no cgroups, no MPI, no accounting (as on many sites, sacct exits 1).
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SwitchType=switch/none
MpiDefault=none

# Resources as slurm.conf says, not as slurmd finds them. Without DefMemPerCPU one job takes a node's memory.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=200
GresTypes=gpu

# Speed: start a job when it is submitted, and notice a lost node in 20 s (MessageTimeout counts more than SlurmdTimeout).
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=100000,bf_interval=1
PriorityType=priority/basic
CompleteWait=0
EpilogMsgTime=0
KillWait=15
# A step that ends while slurmctld is away tries to say so once a minute: it is no reason to drain its node.
UnkillableStepTimeout=120
SlurmctldTimeout=10
SlurmdTimeout=10
BatchStartTimeout=10
MessageTimeout=5
TCPTimeout=2
ReturnToService=2

# Jobs of `low` give way to those of the other two and run again later. They get SIGTERM (or the signal of --signal) at
# least GraceTime earlier; Slurm looks at that only every 30 s, with GraceTime=0 they are requeued at once.
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal

"""

PARTITIONS = """
PartitionName=main Nodes=ALL Default=YES PriorityTier=10 DefaultTime=10 MaxTime=INFINITE State=UP
PartitionName=low Nodes=ALL PriorityTier=1 GraceTime=3 DefaultTime=10 MaxTime=INFINITE State=UP
PartitionName=high Nodes=ALL PriorityTier=100 PreemptMode=OFF DefaultTime=10 MaxTime=INFINITE State=UP
"""
