"""A job with everything hostile that its user could give it, on the cluster: it runs, only what is listed travels, and
what other users can see of it holds no secret."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cluster import Cluster
from gate import Gate
from jobs import texts, wait_for, write_job
from on_slurm import said, submit, wait_complete

pytestmark = pytest.mark.slurm

FOLDER = """a $(touch pwned) `touch pwned` 'q" ;touch pwned& | <x> *?[z] $HOME é --flag"""
HOSTILE = "x; touch pwned # $(touch pwned) `touch pwned` '\" %j %x \\n é"
CANARY = "canary7f3a9c1e5b2d"
VALUE = "two\nlines $(touch pwned) 'q\" %x ;"


def test_hostile_names_and_values(cluster: Cluster, env: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    kept = tmp_path / "environment"
    spec = write_job(
        folder,
        20,
        parallel={"strategy": "pipeline", "stages": 2},
        resources={"device": "cpu", "nodes": 2},
        slurm={
            "comment": HOSTILE,
            "env": ["LISTED"],
            "setup": [f"env -0 > {kept}.$SLURM_JOB_ID", 'export FROM_SETUP="it\'s $LISTED"'],
        },
    )
    here = {
        **env,
        "LISTED": VALUE,
        "HF_TOKEN": CANARY,
        "AWS_SECRET_ACCESS_KEY": CANARY,
        "OTHER": "no",
    }
    run, gate = folder / "run", Gate(tmp_path / "gate", 5)
    here |= gate.env
    before = os.umask(0)
    try:
        with _looking(cluster) as seen:
            (job,) = submit(spec, run, here)
            for word in ("launcher.runtime.rank", f"JobId={job}"):
                wait_for(lambda word=word: any(word in look for look in seen))
            gate.open()
            wait_complete(run, here)
    finally:
        os.umask(before)
    assert len(texts(run)) == 20
    assert not list(tmp_path.rglob("pwned")) and not Path("pwned").exists()
    _what_travelled(Path(f"{kept}.{job}"))
    _who_can_read(run)
    for look in seen:
        assert CANARY not in look
    script = next(run.glob("submitit/*.sh")).read_text()
    assert re.findall(r"--export=(\S+)", script)[0].split(",").count("LISTED") == 1
    for path in run.rglob("*"):
        assert not path.is_file() or CANARY.encode() not in path.read_bytes(), path
    assert CANARY not in said(run)


def _what_travelled(kept: Path) -> None:
    pairs = [pair.partition("=") for pair in kept.read_text().split("\0")]
    travelled = {name: value for name, _, value in pairs}
    assert travelled["LISTED"] == VALUE
    assert "HF_TOKEN" not in travelled and "AWS_SECRET_ACCESS_KEY" not in travelled
    assert "OTHER" not in travelled


def _who_can_read(run: Path) -> None:
    found = [path for path in (run, *run.rglob("*")) if not path.is_symlink()]
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in found}
    open_ = {str(path.relative_to(run)): oct(mode) for path, mode in modes.items() if mode & 0o077}
    assert open_ == {}
    assert any(path.parent.name == "submitit" for path in modes)


@contextmanager
def _looking(cluster: Cluster) -> Iterator[list[str]]:
    """What any user of a node or of the cluster sees, again and again: command lines, and what Slurm tells of jobs."""
    looks: list[str] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.5):
            nodes = [cluster.inside(name, ["ps", "-eo", "args", "-ww"]) for name in cluster.nodes]
            for argv in (*nodes, ["scontrol", "show", "job", "-dd"]):
                done = subprocess.run(
                    argv,
                    capture_output=True,
                    text=True,
                    errors="replace",
                    env={**os.environ, **cluster.env},
                    timeout=300,
                    check=False,
                )
                if done.stdout not in looks:
                    looks.append(done.stdout)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield looks
    finally:
        over.set()
        thread.join()


def test_a_setup_line_can_not_speak_to_sbatch(
    cluster: Cluster, env: dict[str, str], tmp_path: Path
) -> None:
    """Lines that sbatch would take for its own stand behind the first command of the script, where it stops reading."""
    spec = write_job(
        tmp_path, 3, slurm={"setup": [f"#SBATCH --output={tmp_path}/evil\n#SBATCH --nodes=4"]}
    )
    (job,) = submit(spec, tmp_path / "run", env)
    told = cluster.describe(job)
    wait_complete(tmp_path / "run", env)
    assert "NumNodes=" in told and "NumNodes=4" not in told
    assert not (tmp_path / "evil").exists()
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["rows"]["total"] == 3
