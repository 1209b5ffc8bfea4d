"""A whole run with everything hostile that its user could give it, looked at from outside: nobody else can read it, no
secret is in it, nothing that was named ran, and its ranks unpickle nothing."""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from adder import prompt_rows
from gate import hook
from jobs import PATIENCE_S, command, launcher, read_rows, write_job

ROWS = 40
FOLDER = """a $(touch pwned) `touch pwned` 'q" ;touch pwned& | <x> *?[z] $HOME é --flag"""
IDS = [
    "../../../evil",
    "$(touch pwned)",
    "</script><img src=x onerror=alert(1)>",
    "\x1b]0;pwned\x07\x1b[2J",
    'a"b\\c\nd,e{f="g"}',
    "%x%j%A\u202e\u2028",
]
CANARY, SECOND = "canary7f3a9c1e5b2d", "second.canary/0b8d+6e"
# In every process of the run, through PYTHONPATH: what is unpickled, after the word of who does so. Ranks begin when
# somebody who looks at the processes has seen them.
AUDIT = """
import os, sys, time
_file = os.open(os.path.join({folder!r}, f"{{os.getpid()}}"), os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
os.write(_file, (" ".join(sys.orig_argv) + "\\n").encode())
def _hook(event, arguments):
    if event == "pickle.find_class":
        os.write(_file, (repr(arguments) + "\\n").encode())
sys.addaudithook(_hook)
while sys.orig_argv[-2:-1] == ["launcher.runtime.rank"] and not os.path.exists(f"{seen}/{{os.getpid()}}"):
    time.sleep(0.01)
"""


@dataclass
class Seen:
    """A finished run, and what was seen while it went."""

    run: Path
    home: Path
    said: str
    command_lines: set[bytes]
    audit: Path


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    top = tmp_path_factory.mktemp("hostile")
    folder, home, audit, looked = top / FOLDER, top / "home", top / "audit", top / "looked"
    for made in (folder, home, audit, looked):
        made.mkdir()
    rows = [row | {"id": name} for name, row in zip(IDS, prompt_rows(ROWS), strict=False)]
    spec = write_job(
        folder,
        [*rows, *prompt_rows(ROWS)[len(IDS) :]],
        parallel={"strategy": "pipeline", "stages": 2},
    )
    env = {
        **os.environ,
        **{f"XDG_{kind}_HOME": str(home / kind.lower()) for kind in ("STATE", "CONFIG", "CACHE")},
        "HF_TOKEN": CANARY,
        "WANDB_API_KEY": SECOND,
        **hook(home, AUDIT.format(folder=str(audit), seen=looked)),
    }
    running = subprocess.Popen(
        command("run", spec, "--run-dir", folder / "run"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=env,
        umask=0,
        cwd=folder,
    )
    with _watched(looked) as command_lines:
        said, _ = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 0, said
    return Seen(folder / "run", home, said, command_lines, audit)


@contextlib.contextmanager
def _watched(looked: Path) -> Iterator[set[bytes]]:
    """The command lines of all processes of this machine, as any user may see them; in ``looked`` the ids of ranks."""
    found: set[bytes] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    line = path.read_bytes()
                    found.add(line)
                    if b"launcher.runtime.rank" in line:
                        (looked / path.parent.name).touch()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]


def test_rows_keep_their_ids_and_nothing_that_was_named_ran(seen: Seen) -> None:
    rows = read_rows(seen.run / "outputs.jsonl")
    assert [row["id"] for row in rows[: len(IDS)]] == IDS
    assert len(rows) == ROWS
    assert not list(seen.run.parents[1].rglob("pwned"))


def test_all_of_it_is_its_owners_alone_whatever_the_umask(seen: Seen) -> None:
    modes = {path: stat.S_IMODE(path.lstat().st_mode) for path in (seen.run, *seen.run.rglob("*"))}
    assert len(modes) > 30
    assert {path for path, mode in modes.items() if path.is_dir() and mode != 0o700} == set()
    assert {path for path, mode in modes.items() if path.is_file() and mode != 0o600} == set()
    registered = _files(seen.home / "state")
    assert registered and all(path.stat().st_mode & 0o077 == 0 for path in registered)


def test_the_report_made_anew_is_private_too(seen: Seen) -> None:
    seen.run.joinpath("report.html").unlink()
    subprocess.run(command("report", seen.run), check=True, capture_output=True, umask=0)
    assert stat.S_IMODE((seen.run / "report.html").stat().st_mode) == 0o600


def test_tokens_are_nowhere(seen: Seen) -> None:
    for secret in (CANARY, SECOND):
        assert secret not in seen.said
        for path in (*_files(seen.run), *_files(seen.home)):
            assert secret.encode() not in path.read_bytes(), path
    ranks = [line for line in seen.command_lines if b"launcher.runtime.rank" in line]
    assert len(ranks) >= 2, (
        "accelerate and the ranks, which are called alike, were there to be seen"
    )
    for line in seen.command_lines:
        assert CANARY.encode() not in line and SECOND.encode() not in line


def test_nor_is_the_key_by_which_ranks_know_each_other(seen: Seen) -> None:
    (where,) = seen.run.glob("attempts/*/rendezvous.json")
    key = json.loads(where.read_text())["key"]
    assert len(key) == 64
    assert not [
        path for path in _files(seen.run) if path != where and key in path.read_text("latin-1")
    ]
    assert not [line for line in seen.command_lines if key.encode() in line]


def test_a_rank_unpickles_nothing(seen: Seen) -> None:
    """The audit hook of Python's own unpicklers, over the whole life of both ranks."""
    told = {path.name: path.read_text().splitlines() for path in seen.audit.iterdir()}
    ranks = [lines for lines in told.values() if "-m launcher.runtime.rank" in lines[0]]
    ranks = [lines for lines in ranks if "accelerate" not in lines[0]]
    assert len(ranks) == 2
    assert [lines[1:] for lines in ranks] == [[], []]


def test_what_is_printed_does_not_steer_the_terminal(seen: Seen) -> None:
    log = next(seen.run.glob("logs/*-rank-0000.log"))
    with log.open("a") as file:
        file.write("\x1b]0;pwned\x07\x1b[2Jdone\tall\n")
    for arguments in (["status", seen.run], ["logs", seen.run], ["verify", seen.run]):
        shown = launcher(*arguments).stdout
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", shown), shown
    assert "2Jdone\tall" in launcher("logs", seen.run).stdout


def test_report_trace_and_metrics_stay_what_they_are(seen: Seen) -> None:
    page = (seen.run / "report.html").read_text()
    assert "<img" not in page and page.count("<script") == 2
    trace = json.loads((seen.run / "trace.json").read_text())
    assert any(event["ph"] == "X" for event in trace["traceEvents"])
    sample = re.compile(r'launcher_\w+\{(?:\w+="(?:[^"\\]|\\[\\n"])*",?)+\} \S+')
    for line in (seen.run / "metrics.prom").read_text().splitlines():
        assert line.startswith("# ") or sample.fullmatch(line), line


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_user_reads_nothing(seen: Seen) -> None:
    for path in [seen.run.parent, *seen.run.parents[1:5]]:
        path.chmod(path.stat().st_mode | 0o055)  # the way there is open; pytest's folders are not
    look = subprocess.run(
        ["ls", seen.run], user=65534, group=65534, extra_groups=[], capture_output=True, check=False
    )
    assert look.returncode != 0 and b"ermission denied" in look.stderr
    (where,) = seen.run.glob("attempts/*/rendezvous.json")
    read = subprocess.run(
        ["cat", where], user=65534, group=65534, extra_groups=[], capture_output=True, check=False
    )
    assert read.returncode != 0 and read.stdout == b""
