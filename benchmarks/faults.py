"""Forty kills in a run of 1,000 rows on four nodes of the dev cluster, and whether anything was lost, doubled or changed.

    python -m benchmarks.faults [--seed 1] [--kills 40] [--rows 1000] [--keep DIR]

The run is two worlds of two nodes with a rank on each. Victims are drawn by the seed: ranks, `accelerate launch`, agents
(submitit's processes), or all that a node runs of it, at any moment from start to end, several at once. `launcher
resume` goes on whenever nothing is left alive. Needs root and Slurm (slurm/devcluster). Texts are compared with those of an
undisturbed `launcher run` by tests/faults/checker.py, which knows nothing of our code.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from checker import check
from cluster import Cluster, why_not
from gate import Gate
from jobs import journaled, launcher, mixed_rows, wait_for, write_job
from kills import Killer, victims
from on_slurm import submit

SPEC = {
    "parallel": {"strategy": "sequential", "replicas": 2},
    "resources": {"device": "cpu", "nodes": 2},
    "slurm": {"array": 2},
    "batch": {"slots": 2},
}

VOLLEY = 4  # strikes in a row: the rest ends by itself in a moment, and `resume` has to go on
SHARE = 20  # rows that a rank takes in one attempt while there are kills to come: else a quick machine is done before


def main() -> int:
    options = _options()
    if reason := why_not():
        print(f"no cluster here: {reason}", file=sys.stderr)
        return 3
    rows = mixed_rows(options.rows)
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        folder = options.keep or Path(scratch)
        os.environ["XDG_STATE_HOME"] = str(folder / "state")  # not among the user's runs
        calm = folder / "calm"
        spec = write_job(calm, rows, batch={"slots": 16}, parallel=SPEC["parallel"])
        launcher("run", spec, "--run-dir", calm / "run")
        cluster = Cluster(Path(scratch) / "cluster").up(tied=True)
        try:
            run = folder / "run"
            took, killer = disturb(cluster, write_job(folder, rows, **SPEC), run, options)
        finally:
            cluster.down()
        wrong = check(run, calm / "run")
        _tell(run, killer, took, wrong)
    return bool(wrong)


def disturb(
    cluster: Cluster, spec: Path, run: Path, options: argparse.Namespace
) -> tuple[float, Killer]:
    """Seconds from submit to the manifest, and who was killed on the way."""
    gate = Gate(run.parent / "gate", SHARE)
    env = {"SLURM_CONF": cluster.env["SLURM_CONF"], **gate.env}
    killer, began = Killer(cluster, run, options.seed), time.monotonic()
    submit(spec, run, env)
    while killer.killed < options.kills:
        _wait(killer, run)
        wait_for(lambda: _nothing_left(killer))
        assert not (run / "manifest.json").exists(), "it was done before all kills: more --rows"
        launcher("resume", run, env=env)
    gate.open()
    wait_for((run / "manifest.json").exists)
    return time.monotonic() - began, killer


def _nothing_left(killer: Killer) -> bool:
    """After another volley: Slurm may have started one of the worlds later than the other."""
    for _ in killer.volley(VOLLEY):
        time.sleep(killer.random.random() / 20)  # so that some hit what is being ended already
    return not victims(killer.cluster, killer.run) and not killer.cluster.squeue()


def _wait(killer: Killer, run: Path) -> None:
    """Until some rows were added, or, as the seed wants it, a while from the start: importing, joining, loading."""
    done = journaled(run)
    wait_for(lambda: victims(killer.cluster, run))
    if killer.random.random() < 0.7:
        wait_for(lambda: journaled(run) > done)
    time.sleep(2 * killer.random.random())


def _tell(run: Path, killer: Killer, took: float, wrong: list[str]) -> None:
    whom = ", ".join(f"{count} {what}" for what, count in Counter(killer.roles).most_common())
    print(
        f"{killer.killed} processes killed in {took:.0f} s, by {len(killer.strikes)} strikes: {whom}"
    )
    print(f"{len(list(run.glob('attempts/w*')))} attempts, {journaled(run)} rows journaled")
    print("\n".join(wrong) or "nothing lost, doubled or changed")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--keep", type=Path, help="leave the run there")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
