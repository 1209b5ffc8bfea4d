#!/usr/bin/env python3
"""A real Slurm cluster on this machine, for development and tests; README.md beside this file tells more."""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from client import DevclusterError
from cluster import Cluster, why_not
from config import HEAD, Shape

DEFAULT = Path(tempfile.gettempdir()) / f"devcluster-{os.getuid()}"
Options = argparse.Namespace


def up(options: Options, _: list[str]) -> int:
    """start a cluster and leave it running"""
    began = time.monotonic()
    cluster = Cluster(options.dir, shape(options)).up()
    print(f"# {len(cluster.nodes)} nodes idle in {time.monotonic() - began:.1f} s", file=sys.stderr)
    return env(options, [])


def down(options: Options, _: list[str]) -> int:
    """end it, without a trace"""
    Cluster(options.dir).down()
    return 0


def status(options: Options, _: list[str]) -> int:
    """its hosts, and its nodes as Slurm sees them"""
    cluster = running(options)
    slurm = cluster.node_states()
    for name, power in cluster.status().items():
        print(f"{name:4} {cluster.address(name):14} {power:4} {slurm.get(name, '')}".rstrip())
    return 0


def env(options: Options, _: list[str]) -> int:
    """print the shell line that makes Slurm's commands talk to it"""
    print(f"export SLURM_CONF={shlex.quote(running(options).env['SLURM_CONF'])}")
    return 0


def run(options: Options, command: list[str]) -> int:
    """start a cluster for one command, which runs on its head node and takes it along when it ends"""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="devcluster-") as folder:
        cluster = Cluster(Path(folder) / "cluster", shape(options))
        try:
            cluster.up(tied=True)
            return subprocess.call(cluster.inside(HEAD, command), env=cluster.env)
        finally:
            cluster.down()


def kill(options: Options, _: list[str]) -> int:
    """cut a node's power"""
    running(options).kill_node(options.node)
    return 0


def start(options: Options, _: list[str]) -> int:
    """switch a node on again"""
    running(options).start_node(options.node)
    return 0


def cut(options: Options, _: list[str]) -> int:
    """pull a node's network cable"""
    running(options).cut(options.node)
    return 0


def heal(options: Options, _: list[str]) -> int:
    """plug it in again"""
    running(options).heal(options.node)
    return 0


def execute(options: Options, command: list[str]) -> int:
    """run a command on a node"""
    cluster = running(options)
    return subprocess.call(cluster.inside(options.node, command), env=cluster.env)


WHOLE = {"up": up, "down": down, "status": status, "env": env, "run": run}
NODE = {"kill": kill, "start": start, "cut": cut, "heal": heal, "exec": execute}


def running(options: Options) -> Cluster:
    cluster = Cluster(options.dir)
    if not cluster.alive():
        raise DevclusterError(f"no cluster is up in {options.dir}")
    return cluster


def shape(options: Options) -> Shape:
    return Shape(**{field: getattr(options, field) for field in vars(Shape())})


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(prog="devcluster.py", description=__doc__)
    whole.add_argument("--dir", type=Path, default=DEFAULT, help="its folder (%(default)s)")
    commands = whole.add_subparsers(dest="command", required=True)
    for name, function in {**WHOLE, **NODE}.items():
        command = commands.add_parser(name, help=function.__doc__)
        if name in NODE:
            command.add_argument("node")
        if name in {"up", "run"}:
            for field, value in vars(Shape()).items():
                command.add_argument(f"--{field.replace('_', '-')}", type=int, default=value)
    return whole


def main(argv: list[str]) -> int:
    at = argv.index("--") if "--" in argv else len(argv)
    own, command = argv[:at], argv[at + 1 :]
    options = parser().parse_args(own)
    if (options.command in {"run", "exec"}) != bool(command):
        print("run and exec take a command after --, the others take none", file=sys.stderr)
        return 2
    if reason := why_not():
        print(f"no cluster here: {reason}", file=sys.stderr)
        return 3
    try:
        return {**WHOLE, **NODE}[options.command](options, command)
    except DevclusterError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
