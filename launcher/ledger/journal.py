"""Journal: the rows that one rank of one attempt finished. It only grows, and has one writer."""

from __future__ import annotations

import os
import threading
from types import TracebackType

from launcher import crash
from launcher.errors import Busy, RunFailed
from launcher.input.results import Record, encode_line
from launcher.records import Attempt
from launcher.run import Run, sync_file

MAX_PENDING_BYTES = 64 << 20  # a disk this far behind slows the writer down
PAUSE_S = 0.02  # between two syncs, so that rows finished together share one


class Journal:
    """Context manager. ``append`` returns at once; a thread makes rows durable in groups, many times a second.

    ``synced`` counts the rows that are on disk: only those may be reported as done. A write that failed
    (a full disk) is raised as RunFailed by the next ``append`` or ``close``, and nothing is written after it.
    """

    def __init__(self, run: Run, attempt: Attempt, rank: int) -> None:
        """Raises Busy if this rank of this attempt has a journal already."""
        self.path = run.journal(attempt, rank)
        self.synced = 0
        self._appended = 0
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._closing = self._ended = False
        self._error: OSError | None = None
        self._changed = threading.Condition()
        self._stop = threading.Event()
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        try:
            self._file = os.open(self.path, flags, 0o600)
        except FileExistsError:
            raise Busy("another process writes this rank's journal", where=str(self.path)) from None
        except OSError as error:
            raise self._failed(error) from error
        crash.point("opened", self.path)
        sync_file(self.path.parent)  # else a power cut may lose the file with all its rows
        crash.point("synced", self.path)
        self._thread = threading.Thread(target=self._flush_forever, name="journal", daemon=True)
        self._thread.start()

    def append(self, record: Record) -> None:
        """Hand a finished row over. Raises RunFailed if an earlier row could not be written."""
        line = encode_line(record)
        with self._changed:
            if self._closing:
                raise ValueError("the journal is closed")
            while self._pending_bytes > MAX_PENDING_BYTES and not self._ended:
                self._changed.wait()
            if self._ended:
                raise self._failed(self._error) from self._error
            self._appended += 1
            self._pending.append(line)
            self._pending_bytes += len(line)
            self._changed.notify_all()

    def close(self) -> None:
        """Wait until every row is durable. Raises RunFailed if one is not."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._stop.set()
        self._thread.join()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if self.synced < self._appended:
            raise self._failed(self._error) from self._error

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _failed(self, error: OSError | None) -> RunFailed:
        why = error.strerror if error else "the thread that writes them is gone"
        return RunFailed(
            f"finished rows can't be written: {why}",
            where=str(self.path),
            fix="make room there, then launcher resume; rows on disk are kept",
        )

    def _flush_forever(self) -> None:
        try:
            while lines := self._take():
                _write_all(self._file, b"".join(lines))
                crash.point("written", self.path)
                os.fdatasync(self._file)
                self.synced += len(lines)
                crash.point("durable", self.path)
                self._stop.wait(PAUSE_S)
        except OSError as error:
            self._error = (
                error  # not tried again: after a failed sync the kernel may call lost pages clean
            )
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _take(self) -> list[bytes]:
        """The lines to write next; none when the journal is closed and all are written."""
        with self._changed:
            while not self._pending and not self._closing:
                self._changed.wait()
            lines, self._pending, self._pending_bytes = self._pending, [], 0
            self._changed.notify_all()
            return lines


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
