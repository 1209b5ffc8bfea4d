"""Nodes whose network is cut, agents that are gone, and those that come back when others have taken over.

Each test but one ends with the independent checker of tests/faults.
"""

from __future__ import annotations

import json
import signal
import time
import zlib
from pathlib import Path

import pytest
from checker import check
from cluster import Cluster
from gate import Gate
from held_jobs import PIPELINE, REPLICAS, ROWS, job, rank_of
from jobs import wait_for
from kills import victims
from on_slurm import ended, state, submit, wait_complete

pytestmark = pytest.mark.slurm


def test_a_zombie_behind_a_cut_network_changes_nothing(
    fragile: Cluster, env: dict[str, str], gate: Gate, tmp_path: Path, undisturbed: Path
) -> None:
    """Two agents are cut off. When the network is back, one sees that a later attempt has taken over, and the other one
    fails, if Slurm is not quicker. Either way the later attempts, which are at work, are let be."""
    run = tmp_path / "run"
    submit(job(tmp_path, slurm={"array": 2}), run, env)
    gate.wait(ranks=2)
    nodes = {json.loads(path.read_text())["host"] for path in run.glob("status/*.json")}
    agents = [victim for victim in victims(fragile, run) if victim.role == "agent"]
    assert [agent.signal(signal.SIGSTOP) for agent in agents] == [True, True]
    for node in nodes:
        fragile.cut(node)
        # What Slurm does by itself after 20 s.
        fragile.scontrol("update", f"node={node}", "state=down", "reason=cut")
    gate.wait(ranks=2, attempt=2)
    for world in range(2):
        journal = run / "journals" / f"w{world:04d}-a0001-r0000.jsonl"
        later = json.loads((run / f"attempts/w{world:04d}-a0002/attempt.json").read_text())
        forge(journal, ROWS - 1 - world)
        assert journal.stat().st_size > later["fences"][journal.name]
    for node in nodes:
        fragile.heal(node)
    agents[0].kill()  # its srun answers by ending the step
    agents[1].signal(signal.SIGCONT)
    for node in nodes:
        fragile.scontrol("update", f"node={node}", "state=resume")  # sooner than Slurm looks itself
    wait_for(lambda: not [victim for victim in victims(fragile, run) if victim.node in nodes])
    steps = ["pgrep", "-x", "slurmstepd"]
    for node in nodes:  # Slurm has heard all that these had to say
        wait_for(lambda node=node: fragile.exec(node, steps, check=False).returncode)
        fragile.wait_node(node, "idle")
    gate.open()
    wait_complete(run, env)
    assert check(run, undisturbed) == []
    told = sorted(path.parent.name for path in run.glob("attempts/*/ended.json"))
    assert told == ["w0000-a0002", "w0001-a0002"]
    assert [end["kind"] for end in ended(run)] == ["done", "done"]


def forge(journal: Path, row: int) -> None:
    """A whole record of a row that is not done yet, as the zombie could write it, with a text that is none of its."""
    record = json.loads(journal.read_bytes().splitlines()[0][9:])
    payload = json.dumps({**record, "index": row, "id": "zombie", "text": "zombie"}).encode()
    with journal.open("ab") as file:
        file.write(b"%08x %b\n" % (zlib.crc32(payload), payload))


def test_a_cut_node_is_noticed_and_named_and_the_work_goes_on(
    fragile: Cluster, env: dict[str, str], gate: Gate, tmp_path: Path, undisturbed: Path
) -> None:
    run = tmp_path / "run"
    submit(job(tmp_path, **PIPELINE), run, env)
    gate.wait()
    node = rank_of(fragile, run, 1).node
    cut = time.time()
    fragile.cut(node)
    gate.open()  # the ranks wait for each other now
    (end,) = wait_for(lambda: ended(run))
    fragile.heal(node)  # else Slurm gives the job back only when it takes the node to be down
    assert (end["kind"], end["error"]["where"]) == ("failed", node)
    assert "out of reach" in end["error"]["what"]
    # Promised are 15 s, of a machine that is not busy; without the lifeline it were the 240 s of limits.stall.
    assert end["ended"] - cut < 120
    wait_complete(run, env)
    assert check(run, undisturbed) == []


def test_a_killed_agent_is_noticed_and_named(
    fragile: Cluster, env: dict[str, str], gate: Gate, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    submit(job(tmp_path, **REPLICAS), run, env)
    gate.wait(2)
    node = rank_of(fragile, run, 1).node
    (agent,) = [v for v in victims(fragile, run) if (v.role, v.node) == ("agent", node)]
    killed = time.time()
    assert agent.kill()
    (end,) = wait_for(lambda: ended(run))
    assert (end["kind"], end["error"]["where"]) == ("failed", node)
    assert end["error"]["what"].startswith("the agent of node 1 died")
    assert end["ended"] - killed < 120, "the kernel tells at once; limits.stall would be 240 s"
    wait_for(lambda: not victims(fragile, run))
    assert state(run, env)["failure"]["where"] == node
