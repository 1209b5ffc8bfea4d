"""A foreign client of a run's rendezvous: `python tests/faults/foreign.py ADDRESS PORT MARK HOW`.

It belongs to somebody who can reach the port and knows nothing else. From the first moment that the store answers until
its stdin is closed it writes over every key: with `pickle`, which creates MARK where it is unpickled, or with `garbage`.
It prints how many keys it wrote over.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import socket
import sys
from datetime import timedelta


class Evil:
    def __init__(self, mark: str) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self._mark}",)


def main(address: str, port: int, mark: str, how: str) -> None:
    """Wait for the store, then write until nobody wants it any more, or the store is gone."""
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection((address, port), 1).close()
            break
        if _over(0.02):
            return
    import torch.distributed as dist

    store = dist.TCPStore(
        address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=5)
    )
    value = pickle.dumps(Evil(mark)) if how == "pickle" else b"\xff garbage \x00" * 40
    written: set[str] = set()
    with contextlib.suppress(RuntimeError):  # the store is gone
        while not _over(0.005):
            for key in store.list_keys():
                store.set(key, value)
                written.add(key)
    print(len(written), flush=True)


def _over(seconds: float) -> bool:
    return bool(select.select([sys.stdin], [], [], seconds)[0])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4])
