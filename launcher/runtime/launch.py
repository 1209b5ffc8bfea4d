"""The `accelerate launch` of one node: its argv, with every trap of its defaults stepped around."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from launcher.runtime import process


@dataclass(frozen=True)
class World:
    """How many ranks start on how many nodes, which of the nodes this is, and where they all meet."""

    ranks: int
    nodes: int
    node: int
    address: str
    port: int


def launch_argv(world: World, module: str, *arguments: str) -> list[str]:
    """Start this node's ranks of ``world``, each as `python -m module arguments`.

    A world of one process needs, and gets, no rendezvous.
    """
    argv = process.python("accelerate.commands.accelerate_cli", "launch")
    argv += ["--config_file", str(Path(__file__).with_name("accelerate.yaml"))]
    if world.ranks > 1:
        argv += ["--multi_gpu"]  # on CPUs too: every other way silently starts one process
    argv += ["--num_processes", str(world.ranks)]
    argv += ["--num_machines", str(world.nodes), "--machine_rank", str(world.node)]
    argv += ["--main_process_ip", world.address, "--main_process_port", str(world.port)]
    argv += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    return [*argv, "-m", module, *arguments]
