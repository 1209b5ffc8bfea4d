"""Addresses, interfaces and ports: where the ranks of several nodes meet."""

from __future__ import annotations

import contextlib
import fcntl
import random
import socket
import struct

from launcher.errors import PreflightError

SIOCGIFADDR = 0x8915
# Below the range that Linux gives to outgoing connections (32768 on), so that nothing takes the port between
# our look and torchrun's bind but another listener.
PORTS = range(15000, 32000)


def interfaces() -> dict[str, str]:
    """IPv4 address of each interface that has one."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                packed = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                found[name] = socket.inet_ntoa(packed[20:24])
    return found


def own_address(interface: str | None) -> str:
    """The address at which the other nodes reach this one.

    The named interface's; else what this host's own name resolves to, if that is an address of this host and
    not loopback; else that of the first other interface. Raises PreflightError when there is none.
    """
    here = interfaces()
    if interface is not None:
        if interface not in here:
            raise PreflightError(
                f"no interface {interface!r} with an IPv4 address",
                where=socket.gethostname(),
                fix=f"set slurm.network_interface to one of {', '.join(sorted(here))}",
            )
        return here[interface]
    with contextlib.suppress(OSError):
        address = socket.gethostbyname(socket.gethostname())
        if address in here.values() and not address.startswith("127."):
            return address
    others = [address for address in here.values() if not address.startswith("127.")]
    if not others:
        raise PreflightError(
            "this node has no address but loopback",
            where=socket.gethostname(),
            fix="ask the site's administrators",
        )
    return others[0]


def interface_towards(address: str, port: int) -> str | None:
    """The interface from which packets to ``address`` leave; None if no interface has the source address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, port))  # a datagram socket: nothing is sent
        source = probe.getsockname()[0]
    return next((name for name, own in interfaces().items() if own == source), None)


def free_port(address: str) -> int:
    """A TCP port that nobody listens on at ``address``."""
    for port in random.sample(PORTS, 200):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((address, port))
            except OSError:
                continue
            return port
    raise PreflightError("no free port among 200 tried", where=f"{socket.gethostname()} {address}")
