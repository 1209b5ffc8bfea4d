"""Runs without a model, many in a second: a server process has imported everything, and forks the processes of a run.

What runs is our own code from the command to the manifest, but for `accelerate launch`, for loading a model and for the
decode loop: the rank answers each row by a checksum of its prompt.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from power import Disk

GROUPS = (
    3  # the journal's syncs that there are in any case: of the first rows each has one of its own
)


@contextlib.contextmanager
def serve() -> Iterator[Callable[..., int]]:
    """Yields ``play(spec, run, **order)``: make the run or resume it, to its end or a crash.

    Returns 0, or the exit code of the error, or minus the signal. Orders: ``crash`` (as LAUNCHER_CRASH), ``disk`` (folder
    and platter of a power.Disk), ``without`` (a protection of ``PROTECTIONS`` to take out), ``told`` (a file that gets
    the rows that were reported durable), ``said`` (a file that gets stderr), ``hours`` (that the clock is off),
    ``hunger`` (of the rank: its cgroup's folder, or "limit" for a limit of its address space).
    """
    server = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    assert server.stdin is not None
    assert server.stdout is not None

    def play(spec: Path, run: Path, **order: Any) -> int:
        told = {"spec": str(spec), "run": str(run), **order}
        print(json.dumps(told), file=server.stdin, flush=True)
        return int(server.stdout.readline())

    try:
        yield play
    finally:
        server.stdin.close()
        server.wait(300)


class Fork:
    """A forked process with as much of Popen's face as the agent looks at."""

    def __init__(self, work: Callable[[], int]) -> None:
        self.returncode: int | None = None
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            from launcher.runtime import process

            process.die_with_parent(parent)
            code = 1
            try:
                code = work()
            except Exception:  # noqa: BLE001 - the last frame
                traceback.print_exc()
            finally:
                os._exit(code)

    def poll(self) -> int | None:
        return self._ended(os.WNOHANG)

    def wait(self) -> int | None:
        return self._ended(0)

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def _ended(self, how: int) -> int | None:
        if self.returncode is None:
            with contextlib.suppress(ChildProcessError):
                pid, status = os.waitpid(self.pid, how)
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def main() -> None:
    """The server: an order per line, an answer per line."""
    from launcher import prepare

    said, sys.stdout = sys.stdout, sys.stderr
    _without_a_model()
    plans: dict[str, Any] = {}
    for line in sys.stdin:
        order = json.loads(line)
        spec = order["spec"]
        if spec not in plans:
            plans[spec] = prepare.plan_job(Path(spec), [], here=True, say=lambda _: None)
        work = partial(_obey, plans[spec], order)
        code = Fork(work).wait()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, 0):  # a rank dies a moment after its agent
                pass
        print(code, file=said, flush=True)


def _without_a_model() -> None:
    """Put forks in the place of `accelerate launch` and nothing in that of the model, and wait less."""
    from launcher.ledger import journal
    from launcher.runtime import agent, coordinator, generate, process, rank, watchdog
    from launcher.schedulers import local

    assert agent  # imported once, for all forks

    def start_rank(argv: list[str], _log: Path, env: dict[str, str], _cwd: Path) -> Fork:
        def work() -> int:
            os.environ.update(env)
            return rank.main(argv[-1])

        return Fork(work)

    gc.disable()  # it would touch, and so copy, every page that a fork shares
    process.adopt_orphans()
    process.start = start_rank  # type: ignore[assignment]
    local.start = _note_start  # type: ignore[assignment]
    generate._load = lambda *_: None  # type: ignore[assignment]
    coordinator._show = lambda _run: None  # type: ignore[assignment]
    watchdog.POLL_S, journal.PAUSE_S = 0.01, 0.005


def _obey(planned: Any, order: dict[str, Any]) -> int:
    """In a fork: arrange what the order says, and be the command."""
    from launcher import crash
    from launcher.runtime import generate

    crash.arm(order.get("crash"))
    if "said" in order:
        os.dup2(os.open(order["said"], os.O_CREAT | os.O_WRONLY), 2)
    if "hours" in order:
        right = time.time
        time.time = lambda: right() + 3600 * order["hours"]
    if "disk" in order:
        Disk(*map(Path, order["disk"])).watch()
    generate._lead = _answering(order.get("told"), order.get("hunger"))  # type: ignore[assignment]
    PROTECTIONS.get(order.get("without"), lambda: None)()
    return _command(planned, Path(order["run"]))


def _command(planned: Any, path: Path) -> int:
    """`launcher run`, or `launcher resume` where there is a run: command and agent in one process."""
    from launcher import control, prepare
    from launcher.errors import LauncherError
    from launcher.run import Run
    from launcher.runtime import agent, failure
    from launcher.runtime.rendezvous import Node

    run = Run(path)
    try:
        if not run.job.is_file():
            run = prepare.create_run(planned, path)
        elif control.scheduler_to_resume(run) is None:
            return 0
        with failure.refusals(run):  # as command and agent do
            control.start_here(run)
            agent._run(run, Node.alone())
    except LauncherError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:  # as the command line does
        print(error, file=sys.stderr)
        return 1
    return 0


def _note_start(run: Any) -> None:
    from launcher.run import write_json
    from launcher.runtime import process

    job = f"{os.getpid()}.{process.start_time(os.getpid())}@{os.uname().nodename}"
    noted = {"scheduler": "local", "jobs": [job], "start": run.starts(), "started": time.time()}
    write_json(run.jobs, noted)


def _answering(told: str | None, hunger: str | None) -> Callable[..., None]:
    """A decode loop. It writes to ``told`` which rows the journal has reported durable."""

    def lead(_model: Any, _spec: Any, _plan: Any, rows: Any, _recorder: Any) -> None:
        from launcher.records import Generation

        if hunger is not None:
            _take_memory(hunger)
        finished: list[int] = []
        rows.beat.phase("running")
        with open(told or os.devnull, "a") as durable:  # noqa: PTH123
            reported = 0
            while request := rows.pull():
                said = str(request.prompt or request.messages).encode()
                text = f"{zlib.crc32(said):08x}"
                rows.emit(Generation(request.index, request.id, text, "stop", len(said), 8))
                finished.append(request.index)
                while rows.journal.synced < len(finished) <= GROUPS and not rows.journal._ended:
                    time.sleep(0.0005)
                synced = rows.journal.synced
                durable.writelines(f"{row}\n" for row in finished[reported:synced])
                durable.flush()
                reported = synced

    return lead


def _take_memory(hunger: str) -> None:
    if hunger == "limit":
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
        bytearray(16 << 30)
    (Path(hunger) / "cgroup.procs").write_text(str(os.getpid()))
    bytearray(b"x" * (256 << 20))


def _without_sync_of_rows() -> None:
    os.fdatasync = lambda _descriptor: None  # type: ignore[assignment]


def _without_sync_of_outputs() -> None:
    from launcher import disk

    sync = disk.sync_file
    disk.sync_file = lambda path: None if "outputs" in path.name else sync(path)  # type: ignore[assignment]


def _without_sync_of_attempts() -> None:
    from launcher.ledger import attempts

    attempts.sync_file = lambda _path: None  # type: ignore[assignment]


def _without_checksum() -> None:
    from launcher.input import results

    def read_head(line: bytes) -> tuple[int, bool] | None:
        head = results._HEAD.match(line[9:-1])
        return (int(head[1]), head[2] is not None) if head else None

    for name in ("merge", "reader"):
        importlib.import_module(f"launcher.ledger.{name}").read_head = read_head  # type: ignore[attr-defined]


def _without_fence() -> None:
    from launcher.ledger.attempts import Fences

    Fences.limit = lambda _self, _journal: None  # type: ignore[assignment,method-assign]


PROTECTIONS: dict[str | None, Callable[[], None]] = {
    "sync of rows": _without_sync_of_rows,
    "sync of outputs": _without_sync_of_outputs,
    "sync of attempts": _without_sync_of_attempts,
    "checksum": _without_checksum,
    "fence": _without_fence,
}


if __name__ == "__main__":
    main()
