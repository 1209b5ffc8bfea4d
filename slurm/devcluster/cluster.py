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
from client import Client, Completed, DevclusterError, deadline
from config import HEAD, Shape
from namespaces import Booting, Host, boot

DYING_WITH_US = ["setpriv", "--pdeathsig", "KILL"]
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "munge", "ip", "unshare", "nsenter", "setpriv")


def why_not() -> str | None:
    """The reason why there can be no cluster here; None when there can."""
    if missing := [program for program in PROGRAMS if not shutil.which(program)]:
        return f"not installed: {', '.join(missing)} (slurm/devcluster/install.sh installs them)"
    trial = ["unshare", "--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--mount-proc", "true"]
    done = subprocess.run(trial, capture_output=True, text=True, check=False)
    return f"needs root and namespaces: {done.stderr.strip()}" if done.returncode else None


class Cluster(Client):
    """One cluster, in a folder of its own; any process of this machine may open it again by that folder."""

    def __init__(self, folder: Path, shape: Shape | None = None) -> None:
        self.folder = folder.absolute()
        super().__init__(str(self.folder / "etc" / "slurm.conf"))
        self._state = self.folder / "cluster.json"
        self._network = ""  # the first three numbers of every address
        self._link = ""  # this machine's end of the cable to the cluster
        self._hosts: dict[str, Host] = {}
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
        self.folder.mkdir(mode=0o755)
        try:
            self._boot_head(DYING_WITH_US if tied else [])
            for name in self.nodes:
                self.start_node(name)
            self.wait_idle(30)
        except BaseException as error:
            words = self._last_words()
            self.down()
            if isinstance(error, DevclusterError | OSError):
                raise DevclusterError(f"the cluster did not come up: {error}\n{words}") from error
            raise
        return self

    def down(self) -> None:
        """Ends every process of the cluster and removes its network and its folder."""
        if head := self._hosts.get(HEAD):
            if head.alive():
                self._ip(None, f"link del {self._link}")
            head.end()
        for child in self._children.values():
            child.wait()
        self._hosts, self._children = {}, {}
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def alive(self) -> bool:
        return HEAD in self._hosts and self._hosts[HEAD].alive()

    def reset(self) -> None:
        """Back to a cluster without jobs whose nodes are all up, connected and idle."""
        for name in self.nodes:
            if self._hosts[name].alive():
                self.heal(name)
            else:
                self.start_node(name)
        self.run(["scancel", "--full", "--signal=KILL", "--user=root"], check=False)
        self.scancel("--user=root")
        self.wait_idle()

    # -- one host

    @property
    def nodes(self) -> list[str]:
        return self.shape.names

    def address(self, name: str) -> str:
        return config.addresses(self.shape, self._network)[name]

    def start_node(self, name: str) -> None:
        """Switches a node on: boots it, plugs it in, starts its slurmd."""
        if name in self._hosts and self._hosts[name].alive():
            raise DevclusterError(f"{name} is on already")
        node = self._boot(name, self._hosts[HEAD].enter("--pid"))
        head, pid = self._hosts[HEAD], node.host.pid
        self._ip(head, f"link add {name} type veth peer name eth0 netns {pid}")
        self._ip(head, f"link set {name} master bridge up")
        self._ip(
            node.host,
            "link set lo up",
            f"address add {self.address(name)}/24 dev eth0",
            "link set eth0 up",
            f"route add default via {self.address(HEAD)}",
        )
        node.tell("plugged in")
        node.start(["slurmd", "-D", "-N", name])
        node.done()

    def kill_node(self, name: str) -> None:
        """Cuts a node's power: all of its processes are gone when this returns."""
        self._host(name).end()
        if child := self._children.pop(name, None):
            child.wait()
        # The kernel removes the cable too, but in its own time.
        self._ip(self._hosts[HEAD], f"link del {name}", check=False)

    def cut(self, name: str) -> None:
        """Pulls a node's network cable; what runs on it goes on."""
        self._host(name)
        self._ip(self._hosts[HEAD], f"link set {name} down")

    def heal(self, name: str) -> None:
        """Plugs the cable in again."""
        self._host(name)
        self._ip(self._hosts[HEAD], f"link set {name} up")

    def inside(self, name: str, argv: Sequence[str]) -> list[str]:
        """The command that runs `argv` on a host, in the folder that we are in."""
        return [*self._host(name).enter(), "env", f"--chdir={Path.cwd()}", *argv]

    def exec(
        self, name: str, argv: Sequence[str], timeout: float = 30, check: bool = True
    ) -> Completed:
        """Runs a command on a host (a node, or `ctl`)."""
        return self.run(self.inside(name, argv), timeout, check)

    def status(self) -> dict[str, str]:
        """`on` or `off` for every host."""
        return {name: "on" if host.alive() else "off" for name, host in self._hosts.items()}

    # -- how it is done

    def _boot_head(self, prefix: list[str]) -> None:
        (self.folder / "log").mkdir()
        head = self._boot(HEAD, prefix)
        self._plug_machine(head.host)
        config.write(self.folder, self.shape, self._network, f"{self._network}.254")
        run, munge = self.folder / "run", self.folder / "munge"
        munged = ["munged", "--foreground", "--force", f"--key-file={munge}/munge.key"]
        munged += [f"--socket={run}/munge.socket", f"--pid-file={munge}/munged.pid"]
        munged += [f"--log-file={munge}/munged.log", f"--seed-file={munge}/seed"]
        head.tell("plugged in")
        head.start(munged)
        for _ in deadline(10, lambda: "munged does not listen"):
            if (run / "munge.socket").exists():
                break
        head.start(["slurmctld", "-D"])
        head.done()

    def _boot(self, name: str, prefix: list[str]) -> Booting:
        log = self.folder / "log" / f"{name}.log"
        booting = boot(prefix, [name, str(self.folder / "etc")], self.env, log)
        self._hosts[name], self._children[name] = booting.host, booting.process
        self._save()
        return booting

    def _plug_machine(self, head: Host) -> None:
        """A cable from this machine to the cluster's bridge. Its name, which only one cluster can have, is also
        the claim on a network: devc7 is 198.18.7.0/24 (RFC 2544 keeps 198.18.0.0/15 for tests)."""
        for number in range(256):
            link, network = f"devc{number}", f"198.18.{number}"
            taken = self.run(["ip", "-4", "-o", "address", "show", "to", f"{network}.0/24"]).stdout
            cable = f"link add {link} type veth peer name machine netns {head.pid}"
            if not taken and self._ip(None, cable, check=False):
                break
        else:
            raise DevclusterError("no free network in 198.18.0.0/16, or no right to make links")
        self._network, self._link = network, link
        self._save()
        self._ip(None, f"address add {network}.254/24 dev {link}", f"link set {link} up")
        self._ip(
            head,
            "link set lo up",
            "link add bridge type bridge",
            f"address add {self.address(HEAD)}/24 dev bridge",
            "link set bridge up",
            "link set machine master bridge up",
        )

    def _ip(self, host: Host | None, *lines: str, check: bool = True) -> bool:
        """`ip` commands in a host's network, or in the machine's own."""
        prefix = host.enter("--net") if host else []
        done = subprocess.run(
            [*prefix, "ip", "-batch", "-"], input="\n".join(lines), capture_output=True, text=True
        )
        if check and done.returncode:
            raise DevclusterError(f"ip {'; '.join(lines)}: {done.stderr.strip()}")
        return done.returncode == 0

    def _host(self, name: str) -> Host:
        if name not in self._hosts:
            raise DevclusterError(f"no host {name!r}; there are {', '.join(self._hosts) or 'none'}")
        return self._hosts[name]

    def _save(self) -> None:
        hosts = {name: vars(host) for name, host in self._hosts.items()}
        state = {"network": self._network, "link": self._link, "shape": vars(self.shape)}
        fresh = self._state.with_suffix(".new")
        fresh.write_text(json.dumps({**state, "hosts": hosts}, indent=1))
        fresh.replace(self._state)

    def _load(self) -> None:
        state = json.loads(self._state.read_text())
        self._network, self._link = state["network"], state["link"]
        self.shape = Shape(**state["shape"])
        self._hosts = {name: Host(**host) for name, host in state["hosts"].items()}

    def _last_words(self) -> str:
        logs = sorted((self.folder / "log").glob("*.log"))
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-800:]}" for log in logs)
