"""A power cut, simulated strictly: of a folder only that is left which was synced. A file has the bytes that it had at its
last fsync or fdatasync, a folder the names that it had at its last fsync.

Real filesystems mostly keep more than that; what holds here, holds on any of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path


class Disk:
    """What of ``folder`` would survive a power cut, kept in ``platter``."""

    def __init__(self, folder: Path, platter: Path) -> None:
        self.folder, self.platter = folder, platter
        self.platter.mkdir(exist_ok=True)

    def watch(self) -> None:
        """Take note of all syncs that this process does from now on, and of those of its forks."""
        os.fsync = self._noting(os.fsync)  # type: ignore[assignment]
        os.fdatasync = self._noting(os.fdatasync)  # type: ignore[assignment]

    def _noting(self, sync: Callable[[int], None]) -> Callable[[int], None]:
        def synced(descriptor: int) -> None:
            sync(descriptor)
            self._keep(Path(f"/proc/self/fd/{descriptor}").readlink())

        return synced

    def _keep(self, path: Path) -> None:
        if not path.is_relative_to(self.folder):
            return
        found = path.stat()
        kept = self.platter / str(found.st_ino)
        temporary = self.platter / f"{found.st_ino}.{os.getpid()}.tmp"
        if stat.S_ISDIR(found.st_mode):
            names = {}
            for entry in os.scandir(path):
                with contextlib.suppress(FileNotFoundError):
                    names[entry.name] = [entry.inode(), entry.is_dir()]
            temporary.write_text(json.dumps(names))
        else:
            with contextlib.suppress(FileExistsError):
                os.link(path, self.platter / f"{found.st_ino}.pin")  # its number is not given away
            shutil.copyfile(path, temporary)
        temporary.replace(kept)

    def cut(self) -> None:
        """Put ``folder`` into the state in which the power cut leaves it; nobody may be at it any more."""
        root = self.folder.stat().st_ino
        after = self.folder.with_name(self.folder.name + ".after")
        self._restore(root, after)
        shutil.rmtree(self.folder)
        shutil.rmtree(self.platter)
        self.platter.mkdir()
        after.rename(self.folder)
        # What was read back from the platter is on it.
        for path in [self.folder, *self.folder.rglob("*")]:
            self._keep(path)

    def _restore(self, inode: int, to: Path) -> None:
        to.mkdir(mode=0o700)
        kept = self.platter / str(inode)
        names = json.loads(kept.read_text()) if kept.exists() else {}
        for name, (child, is_folder) in names.items():
            if is_folder:
                self._restore(child, to / name)
            else:
                data = self.platter / str(child)
                (to / name).write_bytes(data.read_bytes() if data.exists() else b"")
