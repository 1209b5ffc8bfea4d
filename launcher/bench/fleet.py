"""Fleet: many worlds that share one run, simulated: chunks that are claimed, nodes that fail, worlds that restart.

The same rules as in ledger/claims.py: a replica begins at a place of its own and takes the next chunk that
nobody has; claims of an attempt that is over are void; a replica that finds nothing ends. No torch.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field
from itertools import count

from launcher.input.prompts import chunk_rows


@dataclass(frozen=True)
class Fleet:
    """``worlds`` of ``nodes`` nodes and ``replicas`` replicas each. ``rows_per_s`` is one replica's, which has
    ``slots`` rows in flight. Of the worlds, ``stragglers`` (a share) are ``slowdown`` times as slow.

    A node fails every ``node_mtbf_s`` on average (None: never); that is noticed after ``detect_s``, and the world
    runs again after ``queue_s`` more, unless it did ``max_restarts`` times. Loading takes ``load_s``.
    """

    worlds: int
    nodes: int
    replicas: int
    rows: int
    rows_per_s: float
    slots: int
    node_mtbf_s: float | None = None
    stragglers: float = 0.0
    slowdown: float = 1.0
    load_s: float = 0.0
    detect_s: float = 300.0
    queue_s: float = 300.0
    max_restarts: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        counts = (self.worlds, self.nodes, self.replicas, self.rows, self.slots)
        if min(counts) < 1 or self.rows_per_s <= 0 or self.slowdown < 1:
            raise ValueError("a fleet has worlds, rows, and a rate; stragglers are not faster")

    @property
    def chunk_rows(self) -> int:
        return chunk_rows(self.rows, self.worlds * self.replicas)


@dataclass(frozen=True)
class Course:
    """What came of it. ``seconds`` until the last row; ``busy`` is the share of the replicas' time until then in
    which they computed what counts; ``lost_rows`` were computed, half or whole, and once more; ``left_rows`` nobody
    was left to compute. ``refused`` claims came second, and each made a replica list all claims."""

    seconds: float
    busy: float
    failures: int
    restarts: int
    lost_rows: float
    left_rows: int
    claims: int
    refused: int
    first_idle_s: float


@dataclass
class _World:
    rate: float
    alive: bool = True
    attempt: int = 0
    holds: dict[int, tuple[int, float]] = field(default_factory=dict)  # replica: chunk, since when
    working: int = 0


class _Board:
    """The chunks: rows that are left of each, when it was claimed, and which claims are void."""

    def __init__(self, rows: int, size: int) -> None:
        self.left = [min(size, rows - first) for first in range(0, rows, size)]
        self.claimed: list[float | None] = [None] * len(self.left)
        self.void: list[int] = []
        self._next = list(range(len(self.left) + 1))  # the next free one, by a path that is halved

    def free_from(self, chunk: int) -> int:
        """The first unclaimed chunk from ``chunk`` on, or the number of chunks."""
        while self._next[chunk] != chunk:
            self._next[chunk] = self._next[self._next[chunk]]
            chunk = self._next[chunk]
        return chunk

    def take(self, chunk: int, now: float) -> None:
        if self.claimed[chunk] is None:
            self._next[chunk] = chunk + 1
        self.claimed[chunk] = now


class _Play:
    """One simulation: events in the order of their times."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet, self.random = fleet, random.Random(fleet.seed)
        slow = set(self.random.sample(range(fleet.worlds), round(fleet.stragglers * fleet.worlds)))
        self.worlds = [
            _World(fleet.rows_per_s / (fleet.slowdown if n in slow else 1))
            for n in range(fleet.worlds)
        ]
        self.board = _Board(fleet.rows, fleet.chunk_rows)
        self.at = [self._start(replica) for replica in range(fleet.worlds * fleet.replicas)]
        self.listed = [-1.0] * len(self.at)  # when a replica last saw all claims
        self.events: list[tuple[float, int, str, int, int, int]] = []
        self.order = count()
        self.failures = self.restarts = self.claims = self.refused = 0
        self.lost, self.computed_s, self.last, self.idle = 0.0, 0.0, 0.0, float("inf")

    def run(self) -> Course:
        fleet = self.fleet
        for world in range(fleet.worlds):
            self._begin(world, 0.0)
        while self.events and any(self.board.left):
            now, _, what, world, attempt, detail = heapq.heappop(self.events)
            if what == "void":
                self.board.void.append(detail)
            elif what == "begin":
                self.restarts += 1
                self._begin(world, now)
            elif attempt == self.worlds[world].attempt and self.worlds[world].alive:
                if what == "fail":
                    self._fail(world, now)
                else:
                    self._done(world, detail, now)
        every = fleet.worlds * fleet.replicas * self.last
        return Course(
            seconds=self.last,
            busy=self.computed_s / every if every else 0.0,
            failures=self.failures,
            restarts=self.restarts,
            lost_rows=self.lost,
            left_rows=sum(self.board.left),
            claims=self.claims,
            refused=self.refused,
            first_idle_s=min(self.idle, self.last),
        )

    def _start(self, replica: int) -> int:
        """Where claims.py lets this replica begin; its rank is the replica's first."""
        world, rank = divmod(replica, self.fleet.replicas)
        share = (rank * 0.6180339887 + world * 0.4142135624) % 1
        return int(share * len(self.board.left))

    def _push(self, when: float, what: str, world: int, detail: int = 0) -> None:
        heapq.heappush(
            self.events,
            (when, next(self.order), what, world, self.worlds[world].attempt, detail),
        )

    def _begin(self, number: int, now: float) -> None:
        fleet, world = self.fleet, self.worlds[number]
        world.alive, world.working = True, fleet.replicas
        world.attempt += 1
        world.holds.clear()
        if fleet.node_mtbf_s is not None:
            lasts = self.random.expovariate(fleet.nodes / fleet.node_mtbf_s)
            self._push(now + lasts, "fail", number)
        for replica in range(fleet.replicas):
            self._push(now + fleet.load_s, "done", number, replica)

    def _done(self, number: int, replica: int, now: float) -> None:
        """A replica wants its next chunk; what it had is finished."""
        world = self.worlds[number]
        if replica in world.holds:
            chunk, since = world.holds.pop(replica)
            self.board.left[chunk] = 0
            self.computed_s += now - since
            self.last = max(self.last, now)
        claimed = self._claim(number * self.fleet.replicas + replica, now)
        if claimed is None:
            self.idle = min(self.idle, now)
            world.working -= 1
            world.alive = world.working > 0
            return
        self.claims += 1
        world.holds[replica] = claimed, now
        self._push(now + self.board.left[claimed] / world.rate, "done", number, replica)

    def _claim(self, replica: int, now: float) -> int | None:
        board, end = self.board, len(self.board.left)
        wanted = self.at[replica]
        found = board.free_from(wanted)
        if any((board.claimed[n] or 0.0) > self.listed[replica] for n in range(wanted, found)):
            self.refused += 1
            self.listed[replica] = now
        if found == end:
            found = board.free_from(0)
        if found == end:
            board.void = [chunk for chunk in board.void if board.left[chunk]]
            if not board.void:
                return None
            found = board.void.pop(0)
        board.take(found, now)
        self.at[replica] = min(found + 1, end)
        return found

    def _fail(self, number: int, now: float) -> None:
        """A node of a world is gone, and with it the attempt: rows in flight are lost, half done on average."""
        fleet, world = self.fleet, self.worlds[number]
        self.failures += 1
        world.alive = False
        restarts = world.attempt <= fleet.max_restarts
        again = now + fleet.detect_s + fleet.queue_s
        # Without node 0 nobody says that the attempt has ended, until the next one begins.
        survives = self.random.random() >= 1 / fleet.nodes
        for chunk, since in world.holds.values():
            whole = min(self.board.left[chunk], int((now - since) * world.rate))
            self.board.left[chunk] -= whole
            self.computed_s += whole / world.rate
            self.last = max(self.last, now)
            self.lost += fleet.slots / 2
            if survives or restarts:
                when = now + fleet.detect_s if survives else again
                self._push(when, "void", number, chunk)
        if restarts:
            self._push(again, "begin", number)


def simulate(fleet: Fleet) -> Course:
    """Play ``fleet`` to the end; the same for the same seed. Milliseconds for ten worlds, seconds for thousands."""
    return _Play(fleet).run()
