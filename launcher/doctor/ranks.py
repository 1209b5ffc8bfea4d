"""Ranks that talk: a small world through the same `accelerate launch` that runs use, over gloo or NCCL."""

from __future__ import annotations

import time
from pathlib import Path

from launcher import environ
from launcher.disk import read_json
from launcher.doctor.finding import Finding
from launcher.doctor.pair import JOIN_S
from launcher.report import cells
from launcher.report.units import size
from launcher.runtime import network, process
from launcher.runtime.launch import World, launch_argv

AREA = "ranks"
PATIENCE_S = 2 * JOIN_S
LAST_LINES = 4


def examine(world: World, folder: Path) -> Finding:
    """Start this node's ranks of ``world`` and wait for what they say in ``folder``, which all nodes see."""
    log = folder / f"ranks-{world.node:04d}.log"
    interface = network.interface_towards(world.address, world.port)
    env = environ.for_launch("doctor", interface, _alone(world) if world.ranks == 1 else {})
    process.adopt_orphans()
    began = time.monotonic()
    child = process.start(launch_argv(world, "launcher.doctor.pair", str(folder)), log, env)
    try:
        while (code := child.poll()) is None and time.monotonic() - began < PATIENCE_S:
            time.sleep(0.1)
    finally:
        process.end(child)
    return _judged(world, code, read_json(folder / "ranks.json"), interface, _tail(log))


def _alone(world: World) -> dict[str, str]:
    """What accelerate leaves out where there is one rank."""
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    return {**place, "MASTER_ADDR": world.address, "MASTER_PORT": str(world.port)}


def _judged(
    world: World, code: int | None, told: dict[str, object] | None, interface: str | None, log: str
) -> Finding:
    check = cells.plural(world.ranks, "rank")
    check += f" on {world.nodes} nodes" if world.nodes > 1 else ""
    over = f" over {interface}" if interface and world.nodes > 1 else ""
    if code is None:
        says = f"did not end within {PATIENCE_S} s{over}: {log}"
        remedy = "set slurm.network_interface to one that the nodes share; `ip -br addr` lists them"
        return Finding(AREA, check, "problem", says, remedy)
    if code or told is None:
        says = f"failed{over}: {log}"
        remedy = "look at the message; slurm.network_interface where the guess is wrong"
        return Finding(AREA, check, "problem", says, remedy)
    if not told["right"]:
        remedy = "run it again with NCCL_DEBUG=INFO; ask the administrators"
        return Finding(AREA, check, "problem", "the sum over all ranks is wrong", remedy)
    rate = size(float(str(told["bytes_per_s"])))
    return Finding(AREA, check, "ok", f"{told['backend']} adds up {rate}/s{over}")


def _tail(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-LAST_LINES:])[-600:]
