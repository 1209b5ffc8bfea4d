"""Files on a disk that others read at the same time: they appear whole, or not at all, and exclusive ones once."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launcher import crash
from launcher.errors import Damaged

STALE_TRIES = 5
REPLACED = "a disk that lost data, or an edit: the launcher publishes such files whole"
PRIVATE = 0o077  # umask: what is made is its owner's alone


def read_json(path: Path) -> Any:
    """The file's JSON object, or None if there is no such file. Raises Damaged if it holds anything else."""
    left = STALE_TRIES
    while True:
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError) as error:
            raise Damaged(f"not JSON: {error}", where=str(path), cause=REPLACED) from error
        except OSError as error:
            # NFS says so of a file that was replaced between its lookup and its read.
            left -= 1
            if error.errno != errno.ESTALE or not left:
                raise
        else:
            if isinstance(found, dict):
                return found
            raise Damaged("not a JSON object", where=str(path), cause=REPLACED)


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Publish ``value`` at ``path``: whole or not at all, on disk when this returns if ``durable``."""
    with publish(path, durable=durable) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n")


@contextlib.contextmanager
def private() -> Iterator[None]:
    """What is made in the block is its owner's alone, whatever the umask; also a decorator.

    The umask is the whole process's: this is for processes whose other threads make no files meanwhile.
    """
    before = os.umask(PRIVATE)
    try:
        yield
    finally:
        os.umask(before)


@contextlib.contextmanager
def publish(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place, synced, when the block ends well."""
    temporary = _beside(path)
    try:
        with _named(path):
            yield temporary
            crash.point("written", path)
            if durable:
                sync_file(temporary)
                crash.point("synced", path)
            temporary.replace(path)
            crash.point("renamed", path)
            if durable:
                sync_file(path.parent)
                crash.point("published", path)
    finally:
        temporary.unlink(missing_ok=True)


def create_exclusive(path: Path, text: str) -> bool:
    """Create ``path`` with all of ``text`` if nobody has; True if this call did it."""
    temporary = _beside(path)
    try:
        with _named(path):
            temporary.write_text(text)
            crash.point("written", path)
            sync_file(temporary)
        crash.point("synced", path)
        try:
            os.link(temporary, path)  # unlike O_EXCL, nobody ever sees the file empty
        except FileExistsError:
            return path.samefile(temporary)  # NFS may have lost the answer to a link that was made
        crash.point("linked", path)
        sync_file(path.parent)
        crash.point("created", path)
        return True
    finally:
        temporary.unlink(missing_ok=True)


def clock(folder: Path) -> float:
    """What time it is where ``folder`` is stored, epoch seconds as in its files' mtimes: one clock for all hosts, whatever
    their own say. This host's where the folder can't be written."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()


def age(path: Path, now: float) -> float:
    """Seconds since ``path`` was written, by ``clock``; infinite where it is gone. Opened: NFS may show a file's old times
    to those who only ask for them."""
    try:
        with path.open("rb") as file:
            return max(0.0, now - os.fstat(file.fileno()).st_mtime)
    except FileNotFoundError:
        return math.inf


def sweep(folder: Path) -> None:
    """Remove what writers of this host that were killed have left in ``folder``."""
    for path in folder.glob(f".*.{socket.gethostname()}.*.tmp"):
        pid = path.name.split(".")[-3]
        if pid.isdecimal() and not Path("/proc", pid).exists():
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """An OSError in the block names ``path``: that of a write names no file, others the temporary one."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def _beside(path: Path) -> Path:
    writer = f"{socket.gethostname()}.{os.getpid()}.{threading.get_native_id()}"
    return path.with_name(f".{path.name}.{writer}.tmp")


def sync_file(path: Path) -> None:
    """fsync a file or a directory by path."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
