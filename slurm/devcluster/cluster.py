"""A real Slurm cluster on one machine: every host in namespaces of its own, all within one namespace that ends them all.

    machine ── devc0 ═══ bridge ═══ n1, n2, n3, n4      198.18.0.0/24, a network for tests that nobody routes
                           │
                          ctl (munged, slurmctld)

The host `ctl` is the first process of the cluster: every other one lives in process namespaces below it, the
bridge in its network namespace. When it dies, the kernel ends and removes all the rest.
"""

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import config
import network
from client import Client, Completed, DevclusterError, deadline
from config import HEAD, Shape
from namespaces import UNSHARE, Booting, Host, boot

DYING_WITH_US = ["setpriv", "--pdeathsig", "KILL"]
SLURM = ["slurmctld", "slurmd", "sbatch", "munged", "munge"]
LINUX = ["ip", "unshare", "nsenter", "setpriv"]


def why_not() -> str | None:
    """The reason why there can be no cluster here; None when there can."""
    if missing := [program for program in SLURM + LINUX if not shutil.which(program)]:
        return f"not installed: {', '.join(missing)} (make slurm-packages installs them)"
    done = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)
    return f"needs root and namespaces: {done.stderr.strip()}" if done.returncode else None


class Cluster(Client):
    """One cluster, in a folder of its own; any process of this machine may open it again by that folder."""

    def __init__(self, folder: Path, shape: Shape | None = None) -> None:
        self.folder = folder.absolute()
        super().__init__(str(self.folder / "etc" / "slurm.conf"))
        self._state = self.folder / "cluster.json"
        self.network = ""  # the first three numbers of every address
        self._link = ""  # this machine's end of the cable to the cluster
        self.hosts: dict[str, Host] = {}
        self._children: dict[str, subprocess.Popen[str]] = {}
        self.shape = shape or Shape()
        if self._state.exists():
            self._load()

    # -- the whole cluster

    def up(self, tied: bool = False) -> "Cluster":
        """Starts everything and returns when all nodes are idle. A tied cluster ends with the calling thread, however
        that ends; one that is not goes on until `down`."""
        if self.alive():
            raise DevclusterError(f"already up in {self.folder}: run down first")
        self.down()
        if self.folder.exists():
            raise DevclusterError(f"{self.folder} exists and is no cluster's")
        self.folder.mkdir()
        self._save()
        try:
            self._boot_head(DYING_WITH_US if tied else [])
            for name in self.nodes:
                self.start_node(name)
            self.wait_idle(120)
        except BaseException as error:
            words = self._last_words()
            self.down()
            if isinstance(error, DevclusterError | OSError):
                raise DevclusterError(f"the cluster did not come up: {error}\n{words}") from error
            raise
        return self

    def down(self) -> None:
        """Ends every process of the cluster and removes its network and its folder."""
        if self.alive():
            # The kernel removes the network too, but in its own time.
            network.ip(None, f"link del {self._link}", check=False)
            self.hosts[HEAD].end()
        for child in self._children.values():
            child.wait(30)
        self.hosts, self._children = {}, {}
        if self._state.exists():  # else the folder is not ours
            shutil.rmtree(self.folder)

    def alive(self) -> bool:
        return HEAD in self.hosts and self.hosts[HEAD].alive()

    def reset(self) -> None:
        """Back to a cluster without jobs whose nodes are all up, connected and idle."""
        for name in self.nodes:
            if self.hosts[name].alive():
                self.heal(name)
            else:
                self.start_node(name)
        self.run(["scancel", "--full", "--signal=KILL", "--user=root"], check=False)
        self.scancel("--user=root")
        # A node whose jobs took too long to end is drained; on one that is not, this fails.
        for name in self.nodes:
            self.run(["scontrol", "update", f"node={name}", "state=resume"], check=False)
        self.wait_idle()

    # -- one host

    @property
    def nodes(self) -> list[str]:
        return self.shape.names

    def address(self, name: str) -> str:
        return config.addresses(self.shape, self.network)[name]

    def start_node(self, name: str) -> None:
        """Switches a node on: boots it, plugs it in, starts its slurmd."""
        if name in self.hosts and self._node(name).alive():
            raise DevclusterError(f"{name} is on already")
        node = self._boot(name, self.hosts[HEAD].enter("--pid"))
        network.connect_node(self.hosts[HEAD], node.host, name, self.address(name))
        node.tell("plugged in")
        node.start(["slurmd", "-D", "-N", name])
        node.done()

    def kill_node(self, name: str) -> None:
        """Cuts a node's power: all of its processes are gone when this returns."""
        self._node(name).end()
        if child := self._children.pop(name, None):
            child.wait()
        network.ip(self.hosts[HEAD], f"link del {name}", check=False)  # as in down

    def stop_controller(self) -> None:
        """Ends slurmctld as an administrator does; jobs run on, and Slurm's commands get no answer."""
        pid = (self.folder / "run" / "slurmctld.pid").read_text().strip()
        self.exec(HEAD, ["kill", "-TERM", pid])
        for _ in deadline(120, lambda: "slurmctld does not end"):
            if self.exec(HEAD, ["kill", "-0", pid], check=False).returncode:
                return

    def start_controller(self) -> None:
        """Starts slurmctld again, as a daemon; it knows the jobs from its state files."""
        self.exec(HEAD, ["slurmctld"])

    def cut(self, name: str) -> None:
        """Pulls a node's network cable; what runs on it goes on."""
        self._node(name)
        network.ip(self.hosts[HEAD], f"link set {name} down")

    def heal(self, name: str) -> None:
        """Plugs the cable in again."""
        self._node(name)
        network.ip(self.hosts[HEAD], f"link set {name} up")

    def inside(self, name: str, argv: Sequence[str]) -> list[str]:
        """The command that runs `argv` on a host (a node, or `ctl`), in the folder that we are in, and that
        ends what it runs when it is killed itself."""
        host = self.hosts[HEAD] if name == HEAD else self._node(name)
        return [*host.enter(), *DYING_WITH_US, "env", f"--chdir={Path.cwd()}", *argv]

    def exec(
        self, name: str, argv: Sequence[str], timeout: float = 120, check: bool = True
    ) -> Completed:
        """Runs a command on a host and returns its output."""
        return self.run(self.inside(name, argv), timeout, check)

    def status(self) -> dict[str, str]:
        """`on` or `off` for every host."""
        return {name: "on" if host.alive() else "off" for name, host in self.hosts.items()}

    # -- how it is done

    def _boot_head(self, prefix: list[str]) -> None:
        (self.folder / "log").mkdir()
        head = self._boot(HEAD, prefix)
        self._link, self.network = network.claim(head.host)
        self._save()
        network.connect_machine(head.host, self._link, self.network)
        config.write(self.folder, self.shape, self.network, f"{self.network}.{network.MACHINE}")
        run, munge = self.folder / "run", self.folder / "munge"
        munged = ["munged", "--foreground", "--force", f"--key-file={munge}/munge.key"]
        munged += [f"--socket={run}/munge.socket", f"--pid-file={munge}/munged.pid"]
        munged += [f"--log-file={munge}/munged.log", f"--seed-file={munge}/seed"]
        head.tell("plugged in")
        head.start(munged)
        for _ in deadline(120, lambda: "munged does not listen"):
            if (run / "munge.socket").exists():
                break
        head.start(["slurmctld", "-D"])
        head.done()

    def _boot(self, name: str, prefix: list[str]) -> Booting:
        log = self.folder / "log" / f"{name}.log"
        booting = boot(prefix, [name, str(self.folder / "etc")], self.env, log)
        self.hosts[name], self._children[name] = booting.host, booting.process
        self._save()
        return booting

    def _node(self, name: str) -> Host:
        if name not in self.nodes:
            raise DevclusterError(f"no node {name!r}; there are {', '.join(self.nodes)}")
        return self.hosts[name]

    def _save(self) -> None:
        hosts = {name: vars(host) for name, host in self.hosts.items()}
        state = {"network": self.network, "link": self._link, "shape": vars(self.shape)}
        fresh = self._state.with_suffix(".new")
        fresh.write_text(json.dumps({**state, "hosts": hosts}, indent=1))
        fresh.replace(self._state)

    def _load(self) -> None:
        state = json.loads(self._state.read_text())
        self.network, self._link = state["network"], state["link"]
        self.shape = Shape(**state["shape"])
        self.hosts = {name: Host(**host) for name, host in state["hosts"].items()}

    def _last_words(self) -> str:
        """The end of what each host's daemons wrote to stderr."""
        logs = [self.folder / "log" / f"{name}.log" for name in self.hosts]
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-800:]}" for log in logs)
