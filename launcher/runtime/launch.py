"""The `accelerate launch` of one node: its argv, with every trap of its defaults stepped around."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from launcher.runtime import process

SCRIPT_MODULE = "launcher.runtime.script"


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
    options = ["--config_file", str(Path(__file__).with_name("accelerate.yaml"))]
    if world.ranks > 1:
        options += ["--multi_gpu"]  # on CPUs too: every other way silently starts one process
    options += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    return [*_launch(world), *options, "-m", module, *arguments]


def script_argv(world: World, config: Path, threads: int, *arguments: str) -> list[str]:
    """The same for a user's script, whose ``config`` file says all but where its ranks are. ``threads`` of each."""
    options = ["--config_file", str(config), "--num_cpu_threads_per_process", str(threads)]
    return [*_launch(world), *options, "-m", SCRIPT_MODULE, *arguments]


def _launch(world: World) -> list[str]:
    argv = process.python("accelerate.commands.accelerate_cli", "launch")
    argv += ["--num_processes", str(world.ranks)]
    argv += ["--num_machines", str(world.nodes), "--machine_rank", str(world.node)]
    return [*argv, "--main_process_ip", world.address, "--main_process_port", str(world.port)]
