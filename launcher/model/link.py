"""Links between the ranks of one replica: words one way over gloo, on their way while both ends compute.

Every message is an int64 tensor. Its first words say when it was sent and what step it is about, so that the
receiver can tell the time that bytes moved from the time that the other rank still computed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from launcher.errors import PeerLost
from launcher.measure.spans import Recorder, clock
from launcher.model.gang import Gang

ENVELOPE = (
    3  # words: microseconds on the clock of rank 0 at which it was sent, group, number of the step
)
# A rank may have nothing to do for hours, and whether the others live is for the agents to see: where a wait
# of gloo times out it breaks every connection of the group.
FOREVER = timedelta(days=365)
AT_ONCE_S = 50e-6  # a wait that took less found its message there


@dataclass(frozen=True)
class Peer:
    """Another rank of the gang. ``tag`` keeps apart what the same two ranks send each other for several ends.

    All methods raise PeerLost when that rank is gone.
    """

    rank: int
    host: str
    tag: int

    @classmethod
    def of(cls, gang: Gang, rank: int, tag: int = 0) -> Peer:
        return cls(rank, gang.hosts[rank], tag)

    def send(self, data: torch.Tensor) -> Any:
        """Begin to send ``data``, which must stay as it is until the work that this returns is done."""
        return self._or_lost(lambda: dist.isend(data, self.rank, tag=self.tag))

    def post(self, data: torch.Tensor) -> Any:
        """Begin to receive the next message into ``data``; it may be shorter than that."""
        return self._or_lost(lambda: dist.irecv(data, self.rank, tag=self.tag))

    def wait(self, work: Any) -> None:
        """Sleep until ``work`` is done."""
        self._or_lost(lambda: work.wait(FOREVER))

    def _or_lost(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except RuntimeError as error:
            raise PeerLost(
                f"lost rank {self.rank} on {self.host}: {str(error).partition('. ')[0]}",
                cause="that rank ended, or the network between the two hosts failed",
                fix=f"see the log of rank {self.rank}, then launcher resume",
            ) from error


@dataclass(frozen=True)
class Side:
    """One rank's side of its links: its ``stage``, where it records, and ``shift``, what to add to its
    ``time.perf_counter()`` to get the clock of rank 0, in seconds."""

    stage: int
    recorder: Recorder
    shift: float

    @classmethod
    def of(cls, gang: Gang, stage: int, recorder: Recorder) -> Side:
        moment = clock(gang.clock_offset)
        return cls(stage, recorder, moment["epoch"] + moment["offset"] - moment["monotonic"])


class Outbox:
    """Messages to ``peer``. Up to ``most`` are on their way; the next one waits for the oldest."""

    def __init__(self, side: Side, peer: Peer, most: int) -> None:
        self._side, self._peer, self._most = side, peer, most
        self._going: deque[tuple[torch.Tensor, Any]] = (
            deque()
        )  # kept: gloo reads them until they are gone

    def send(self, data: torch.Tensor) -> None:
        """Send ``data``, which is this outbox's from now on."""
        data[0] = round((time.perf_counter() + self._side.shift) * 1e6)
        self._going.append((data, self._peer.send(data)))
        self.finish(self._most)

    def finish(self, left: int = 0) -> None:
        """Wait until no more than ``left`` messages are on their way."""
        while len(self._going) > left:
            self._peer.wait(self._going.popleft()[1])


class Inbox:
    """Messages from ``peer``, each into the oldest buffer that was posted: it arrives even if nobody looks."""

    def __init__(self, side: Side, peer: Peer) -> None:
        self._side, self._peer = side, peer
        self._posted: deque[tuple[torch.Tensor, Any]] = deque()

    def post(self, buffer: torch.Tensor) -> None:
        """Have a message received into ``buffer`` (n,), n at least its length."""
        self._posted.append((buffer, self._peer.post(buffer)))

    def receive(self) -> torch.Tensor:
        """The next message, at the head of its buffer; sleeps until it is there."""
        buffer, work = self._posted.popleft()
        began = time.perf_counter()
        self._peer.wait(work)
        arrived = time.perf_counter()
        if arrived - began > AT_ONCE_S:
            self._record(buffer, began, arrived)
        return buffer

    def _record(self, buffer: torch.Tensor, began: float, arrived: float) -> None:
        """Until it was sent the other rank computed; from then on bytes moved."""
        sent_us, group, number = buffer[:ENVELOPE].tolist()
        sent = min(max(began, sent_us / 1e6 - self._side.shift), arrived)
        place = (self._side.stage, group, number)
        self._side.recorder.add("wait", began, sent, *place)
        self._side.recorder.add("transfer", sent, arrived, *place)
