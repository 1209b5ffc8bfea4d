"""The cables between this machine, the head node's bridge and the nodes."""

import subprocess

from client import DevclusterError
from namespaces import Host

GATEWAY = 1  # the head's number in the cluster's network
MACHINE = 254  # this machine's


def ip(host: Host | None, *lines: str, check: bool = True) -> bool:
    """`ip` commands in a host's network, or in the machine's own; whether all of them worked."""
    done = subprocess.run(
        [*(host.enter("--net") if host else []), "ip", "-batch", "-"],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        check=False,
    )
    if check and done.returncode:
        raise DevclusterError(f"ip {'; '.join(lines)}: {done.stderr.strip()}")
    return done.returncode == 0


def claim(head: Host) -> tuple[str, str]:
    """Makes a cable from this machine into the head; returns its end here and a network that nobody else has.

    The network is given by its first three numbers. The cable's name, which there can be only once, is the claim
    on it: devc7 means 198.18.7.0/24 (RFC 2544 keeps 198.18.0.0/15 for tests, so nothing real is shadowed).
    """
    for number in range(256):
        link, network = f"devc{number}", f"198.18.{number}"
        show = ["ip", "-4", "-o", "address", "show", "to", f"{network}.0/24"]
        taken = subprocess.run(show, capture_output=True, check=True).stdout
        cable = f"link add {link} type veth peer name machine netns {head.pid}"
        if not taken and ip(None, cable, check=False):
            return link, network
    raise DevclusterError("no free network in 198.18.0.0/16, or no right to make links")


def connect_machine(head: Host, link: str, network: str) -> None:
    """Brings up the bridge and the machine's cable to it."""
    ip(None, f"address add {network}.{MACHINE}/24 dev {link}", f"link set {link} up")
    ip(
        head,
        "link set lo up",
        "link add bridge type bridge",
        f"address add {network}.{GATEWAY}/24 dev bridge",
        "link set bridge up",
        "link set machine master bridge up",
    )


def connect_node(head: Host, node: Host, name: str, address: str) -> None:
    """Brings up a node's eth0 and its cable, which has the node's name at the bridge."""
    ip(head, f"link del {name}", check=False)  # what a node that died by itself may have left
    ip(
        head,
        f"link add {name} type veth peer name eth0 netns {node.pid}",
        f"link set {name} master bridge up",
    )
    gateway = f"{address.rpartition('.')[0]}.{GATEWAY}"
    ip(
        node,
        "link set lo up",
        f"address add {address}/24 dev eth0",
        "link set eth0 up",
        f"route add default via {gateway}",  # leads nowhere, but some programs ask it for their own address
    )
