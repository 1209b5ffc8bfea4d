"""Somebody who can reach a run's rendezvous reads and writes there: no rank runs anything for it, the job ends with an
error that says so, or with the right texts, and is resumed."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from gate import hook
from jobs import PATIENCE_S, command, launcher, texts, wait_for, write_job

import launcher as package

ROWS = 40
STAGES = {"strategy": "pipeline", "stages": 2}
# In every rank, through PYTHONPATH: nothing is read from the store before the client has written over it.
READS_LAST = """
import sys, time
if sys.orig_argv[-3:-1] == ["-m", "launcher.runtime.rank"] and "launch" not in sys.orig_argv:
    from launcher.model.sealed import SealedStore
    get = SealedStore.get
    def get_again(store, key):
        while get(store, key) is not None:
            time.sleep(0.01)
    SealedStore.get = get_again
"""
UNSAFE = {  # what unpickles what another process sent, or what a file holds
    *("pickle", "cPickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"),
    *("all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list"),
    *("send_object_list", "recv_object_list", "rpc", "eval", "exec"),
}


def test_a_client_that_writes_over_every_key(tmp_path: Path) -> None:
    spec, run = write_job(tmp_path, ROWS, parallel=STAGES), tmp_path / "run"
    attacked(["run", spec, "--run-dir", run], run, "w0000-a0001", "pickle")
    attacked(["resume", run], run, "w0000-a0002", "garbage")
    launcher("resume", run)
    assert len(texts(run)) == ROWS
    assert not (tmp_path / "pwned").exists()


def attacked(words: list[str | Path], run: Path, attempt: str, how: str) -> None:
    """The attempt that ``words`` open comes to nothing, and says why."""
    mark = run.with_name("pwned")
    running = subprocess.Popen(
        command(*words),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **hook(run.with_name("hook"), READS_LAST)},
    )
    where = run / "attempts" / attempt / "rendezvous.json"
    wait_for(where.exists)
    met = json.loads(where.read_text())
    script = Path(__file__).with_name("foreign.py")
    client = subprocess.Popen(
        [sys.executable, str(script), met["address"], str(met["port"]), str(mark), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    said, _ = running.communicate(timeout=PATIENCE_S)
    written, _ = client.communicate(timeout=PATIENCE_S)
    assert int(written) >= 2, "the client did not find the store"
    assert not mark.exists()
    assert running.returncode in (3, 75), said
    assert "Traceback" not in said
    assert not (run / "manifest.json").exists()


def _calls() -> Iterator[tuple[Path, ast.AST, str]]:
    """Every name and attribute in the package's own code."""
    for path in sorted(Path(package.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Name):
                yield path, node, node.id
            elif isinstance(node, ast.Attribute):
                yield path, node, node.attr
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    yield path, node, alias.name.split(".")[0]
            elif isinstance(node, ast.ImportFrom):
                yield path, node, (node.module or "").split(".")[0]


def test_nothing_of_ours_unpickles() -> None:
    found = [
        f"{path.name}:{getattr(node, 'lineno', 0)} {name}"
        for path, node, name in _calls()
        if name in UNSAFE and not (name in ("eval", "exec") and isinstance(node, ast.Attribute))
    ]
    # job/accelerate.py runs one function out of the installed accelerate, to know its options.
    assert [each for each in found if not re.fullmatch(r"accelerate\.py:\d+ exec", each)] == []


def test_no_shell_but_for_the_users_own_line() -> None:
    """`notify.command` is shell by its nature, and gets what it is told by the environment."""
    found = []
    for path in sorted(Path(package.__file__).parent.rglob("*.py")):
        text = path.read_text()
        if "shell=True" in text or "os.system" in text or '"-c"' in text:
            found.append(path.name)
    assert found == ["notify.py"]


def test_torch_loads_weights_alone() -> None:
    found = 0
    for path in sorted(Path(package.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                found += 1
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert given.get("weights_only") == "True", f"{path.name}:{node.lineno}"
    assert found == 1, "launcher convert reads pickled weights, and nothing else does"
