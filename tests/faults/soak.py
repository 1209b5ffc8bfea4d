"""Random specs and random faults, for hours: `make soak`, or

    PYTHONPATH=tests python tests/faults/soak.py [SECONDS [SEED]]

Each round is a run with several faults, resumed until it is complete and then checked. The seed is printed; a run that
is not sound stays where it is, and ends the soak.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from checker import check
from jobs import command, mixed_rows, wait_for, write_job
from killer import Killer, processes

from launcher.crash import POINTS

ROWS = 120
RESUMES = 25  # of one run
SPLITS: list[dict[str, Any]] = [
    {"strategy": "sequential"},
    {"strategy": "sequential", "replicas": 2},
    {"strategy": "pipeline", "stages": 2},
    {"strategy": "pipeline", "stages": 2, "schedule": "naive"},
    {"strategy": "tensor", "tensor": 2},
    {"strategy": "streamed"},
]


def main(seconds: float = 3600, seed: int | None = None) -> int:
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    print(f"seed {seed}, {seconds:.0f} s", flush=True)
    place = Path(tempfile.mkdtemp(prefix="launcher-soak-"))
    os.environ |= {"XDG_STATE_HOME": str(place / "state"), "OMP_NUM_THREADS": "1"}
    chance, end = random.Random(seed), time.monotonic() + seconds
    spec = write_job(place / "undisturbed", mixed_rows(ROWS), batch={"slots": 16})
    undisturbed = place / "undisturbed" / "run"
    subprocess.run(command("run", spec, "--run-dir", undisturbed), check=True, capture_output=True)
    for number in itertools.count(1):
        if time.monotonic() > end:
            break
        problems = play(place / "round", undisturbed, chance, number)
        if problems:
            print("\n".join([*problems, f"seed {seed}: {place / 'round' / 'run'}"]))
            return 1
        shutil.rmtree(place / "round")
    shutil.rmtree(place)
    return 0


def play(folder: Path, undisturbed: Path, chance: random.Random, number: int) -> list[str]:
    """One round; what is wrong with its run."""
    split, slots = chance.choice(SPLITS), chance.choice([1, 3, 8])
    limits = {"join": "60s", "stall": "8s", "drain": "10s"}
    spec = write_job(
        folder, mixed_rows(ROWS), parallel=split, batch={"slots": slots}, limits=limits
    )
    run, faults = folder / "run", chance.randint(1, 6)
    told: list[str] = []
    for _ in range(RESUMES):
        if (run / "manifest.json").exists():
            break
        argv = command("resume", run)
        if not (run / "job.yaml").exists():
            shutil.rmtree(run, ignore_errors=True)  # it was killed while it made the run
            argv = command("run", spec, "--run-dir", run)
        if len(told) < faults:
            told.append(disturb(argv, run, chance))
        else:
            subprocess.run(argv, capture_output=True, check=False, timeout=600)
    print(f"round {number}: {split}, {slots} slots: {', '.join(told)}", flush=True)
    return check(run, undisturbed)


def disturb(argv: list[str], run: Path, chance: random.Random) -> str:
    """Start a command of a run, do something to it, and wait for its end: what it was."""
    how = chance.choice(["kill", "kill", "point", "stop", "drain"])
    env = dict(os.environ)
    if how == "point":
        env["LAUNCHER_CRASH"] = f"{chance.choice(POINTS)}:{chance.randint(1, 3)}"
    with (run.parent / "said").open("ab") as said:
        running = subprocess.Popen(argv, env=env, stdout=said, stderr=said)
    told = how if how != "point" else env["LAUNCHER_CRASH"]
    if how == "kill":
        victim = strike(running, run, chance)
        told = f"kill of {victim}" if victim else "nothing"
    elif how != "point":
        told = interrupt(running, run, chance, how)
    running.wait(600)
    return told


def ready(running: subprocess.Popen[bytes], run: Path) -> bool:
    """Wait for the ranks of the latest attempt; False if the command was quicker."""

    def due() -> bool:
        return running.poll() is not None or bool(
            [path for path in run.glob("attempts/*/attempt.json") if _ranks(run, path.parent.name)]
        )

    wait_for(due, 300)
    return running.poll() is None


def strike(running: subprocess.Popen[bytes], run: Path, chance: random.Random) -> str | None:
    return Killer(chance).strike(run, running.pid) if ready(running, run) else None


def interrupt(running: subprocess.Popen[bytes], run: Path, chance: random.Random, how: str) -> str:
    """SIGSTOP of a rank, or SIGTERM of the command."""
    if not ready(running, run):
        return "nothing"
    time.sleep(chance.random() * 5)
    found = processes(run)
    victims = sorted(name for name in found if name.startswith("rank"))
    if how == "stop" and not victims:
        return "nothing"  # they have done all there was
    name = chance.choice(victims) if how == "stop" else "command"
    pid = found[name] if how == "stop" else running.pid
    try:
        os.kill(pid, signal.SIGSTOP if how == "stop" else signal.SIGTERM)
    except ProcessLookupError:
        return "nothing"
    return f"{how} of {name}"


def _ranks(run: Path, attempt: str) -> list[Path]:
    ended = run / "attempts" / attempt / "ended.json"
    return [] if ended.exists() else list(run.glob(f"status/{attempt}-*.json"))


if __name__ == "__main__":
    sys.exit(main(*map(float, sys.argv[1:2]), *map(int, sys.argv[2:3])))
