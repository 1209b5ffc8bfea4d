"""SealedStore: what the ranks tell each other through the store at which they meet, sealed with their key."""

from __future__ import annotations

import hmac
import secrets
import socket
from datetime import timedelta

import torch.distributed as dist

from launcher.errors import PreflightError

SEAL = 32  # bytes of a sha256
NONCE = 16


class SealedStore(dist.Store):
    """``store``, of which whoever calls its port can read and change everything, with each value encrypted, and a seal
    before it.

    Addresses come out of it, which libraries take apart without a doubt: one that no rank of this attempt wrote
    raises PreflightError first. NCCL believes whoever calls it and knows the id that is told here: nobody else does.
    """

    def __init__(self, store: dist.Store, key: bytes) -> None:
        super().__init__()
        self._store, self._key = store, key

    def set(self, key: str, value: bytes | str) -> None:
        data = value.encode() if isinstance(value, str) else bytes(value)
        nonce = secrets.token_bytes(NONCE)
        hidden = nonce + self._turned(nonce, data)
        sealed = self._seal(key, hidden) + hidden
        self._store.set(key, sealed)  # type: ignore[arg-type]  # it takes bytes, too

    def get(self, key: str) -> bytes:
        raw = bytes(self._store.get(key))
        seal, hidden = raw[:SEAL], raw[SEAL:]
        if not hmac.compare_digest(seal, self._seal(key, hidden)):
            raise PreflightError(
                f"what the ranks' store says of {key} is not from a rank of this attempt, or from one with another plan",
                where=socket.gethostname(),
                cause="another program writes to this run's rendezvous port",
                fix="launcher resume chooses a new port",
            )
        return self._turned(hidden[:NONCE], hidden[NONCE:])

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        if timeout is None:
            self._store.wait(keys)
        else:
            self._store.wait(keys, timeout)

    def check(self, keys: list[str]) -> bool:
        return bool(self._store.check(keys))

    def add(self, key: str, amount: int) -> int:
        """A counter has no seal: who changes it can keep ranks waiting, and no more."""
        return int(self._store.add(key, amount))

    def delete_key(self, key: str) -> bool:
        return bool(self._store.delete_key(key))

    def set_timeout(self, timeout: timedelta) -> None:
        self._store.set_timeout(timeout)

    def _seal(self, key: str, hidden: bytes) -> bytes:
        return hmac.digest(self._key, f"seal {key}\n".encode() + hidden, "sha256")

    def _turned(self, nonce: bytes, data: bytes) -> bytes:
        """``data`` encrypted, or decrypted: added to what the key makes of a nonce that is used once."""
        blocks = range(-(-len(data) // SEAL))
        made = (
            hmac.digest(self._key, b"stream %b %d" % (nonce, block), "sha256") for block in blocks
        )
        return bytes(a ^ b for a, b in zip(data, b"".join(made), strict=False))
