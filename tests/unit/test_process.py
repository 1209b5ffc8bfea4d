"""Children die with their parents, whatever kills those."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.runtime import process


def gone(pid: int, patience_s: float = 300.0) -> bool:
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if process.start_time(pid) is None:
            return True
        time.sleep(0.02)
    return False


def read_pids(path: Path, count: int) -> list[int]:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        words = path.read_text().split() if path.exists() else []
        if len(words) == count:
            return [int(word) for word in words]
        time.sleep(0.02)
    raise AssertionError(f"{path}: {words}")


PARENT = """
import os, sys, time
from pathlib import Path
from launcher.runtime import process
out = Path(sys.argv[1])
child = process.start([sys.executable, "-c", "import time; time.sleep(600)"], out / "log", os.environ)
(out / "pids").write_text(f"{child.pid}")
time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_dies_with_its_parent(tmp_path: Path, how: signal.Signals) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)])
    try:
        (child,) = read_pids(tmp_path / "pids", 1)
        assert process.start_time(child) is not None
    finally:
        parent.send_signal(how)
        parent.wait()
    assert gone(child)


AGENT = """
import os, sys
from pathlib import Path
from launcher.runtime import process
out = Path(sys.argv[1])
process.adopt_orphans()
# A launcher whose worker has a session of its own, as torchrun's have.
worker = "import os, time; os.setsid(); open({path!r}, 'a').write(f'{{os.getpid()}} '); time.sleep(600)"
launch = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', sys.argv[1]]); time.sleep(600)"
path = str(out / "pids")
child = process.start([sys.executable, "-c", launch, worker.format(path=path)], out / "log", os.environ)
while not Path(path).exists() or not Path(path).read_text().strip():
    pass
process.end(child)
assert process.children(os.getpid()) == []
print("ended")
"""


def test_end_leaves_nothing_of_a_tree_with_sessions_of_its_own(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AGENT, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "ended\n", done.stderr
    (worker,) = read_pids(tmp_path / "pids", 1)
    assert process.start_time(worker) is None


def test_sigusr2_is_ignored_in_children(tmp_path: Path) -> None:
    code = "import signal; print(signal.getsignal(signal.SIGUSR2) == signal.SIG_IGN)"
    child = process.start([sys.executable, "-c", code], tmp_path / "log", os.environ)
    assert child.wait() == 0
    assert (tmp_path / "log").read_text() == "True\n"


def test_start_time_of_a_zombie_is_none() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    assert gone(pid)
    os.waitpid(pid, 0)
    assert process.start_time(os.getpid()) is not None


STEPS = """
import resource, sys
from launcher.runtime import process

if sys.argv[1] == "keep":
    process.keep_freed_memory()
for step in range(12):
    if step == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    activations = [b"x" * (20 << 20) for _ in range(3)]
    del activations
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str, **env: str) -> int:
    """Pages that ten steps fetch which use and free 60 MiB."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", STEPS, how],
        env=plain | env,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(done.stdout)


def test_freed_memory_is_kept_for_the_next_step_unless_the_user_says_otherwise() -> None:
    usual, kept = faults("leave"), faults("keep")
    assert kept < usual / 10
    assert faults("keep", MALLOC_TRIM_THRESHOLD_="1000000") > usual / 2
