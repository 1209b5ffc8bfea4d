"""Watchdog: what an agent does while its ranks run. It never waits for a collective to time out.

It looks at the child process, at the status files of this node's ranks and at the other agents' files, and
ends the ranks when one of them died, stands still, when the run is asked to stop and does not, or when a later attempt
has taken over.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from launcher import ledger
from launcher.errors import NodeLost
from launcher.job.spec import JobSpec
from launcher.logs import get_logger
from launcher.plan.plan import Plan
from launcher.records import Attempt
from launcher.run import Run, read_json, request_drain, write_json
from launcher.runtime import failure, process
from launcher.runtime.freshness import AWAKE_S, Freshness
from launcher.runtime.lifeline import Lifelines
from launcher.runtime.oom import OomKills
from launcher.runtime.outcome import Outcome

POLL_S = 0.1
BEAT_S = 1.0
GONE_S = 1.0  # for `accelerate launch` to say how a rank ended
DEAF_S = 5.0  # a rank that has not begun to drain by then waits for something that may never come


@dataclass
class Watchdog:
    """Watches the ranks of node ``node`` (index) in ``attempt`` until ``child`` has ended.

    ``stop_reason`` is asked every time round; a text means that the run is to be drained.
    """

    run: Run
    spec: JobSpec
    plan: Plan
    node: int
    attempt: Attempt
    child: subprocess.Popen[bytes]
    stop_reason: Callable[[], str | None]
    lifelines: Lifelines = field(default_factory=Lifelines)
    fresh: Freshness = field(default_factory=Freshness)
    started: float = field(default_factory=time.monotonic)
    oom_kills: OomKills = field(default_factory=OomKills.count)
    drain_seen: float | None = None
    statuses: dict[int, dict[str, Any] | None] = field(default_factory=dict)  # by rank of this node
    gone_seen: dict[int, tuple[float, int | None]] = field(default_factory=dict)
    last_beat: float = 0.0
    last_look: float = 0.0

    def watch(self) -> Outcome:
        """Block until the ranks have ended, by themselves or by this watchdog. Nothing of them is left then.

        Raises Superseded when a later attempt has taken over; so does ``gather``.
        """
        try:
            seen = time.monotonic()
            while (code := self.child.poll()) is None:
                # A node that was suspended wakes up with old files: that is nobody's silence.
                self.fresh.forgive(max(0.0, time.monotonic() - seen - AWAKE_S))
                seen = time.monotonic()
                self._check_current()
                self._beat()
                self._look()
                if (
                    early := self._cut_off()
                    or self._gone()
                    or self._drain()
                    or self._peers()
                    or self._deadlines()
                ):
                    return early
                time.sleep(POLL_S)
            return self._ended(code)
        finally:
            process.end(self.child)

    @property
    def ranks(self) -> list[int]:
        """The ranks of this node."""
        return [placement.rank for placement in self.plan.placements if placement.node == self.node]

    def draining(self) -> bool:
        return self.run.attempt_file(self.attempt, "drain").exists()

    def _check_current(self) -> None:
        if time.monotonic() - self.last_look >= BEAT_S:
            self.last_look = time.monotonic()
            self.run.job.stat()  # raises FileNotFoundError where the run directory is gone
            ledger.check_current(self.run, self.attempt)

    def _look(self) -> None:
        """Read what this node's ranks say of themselves."""
        self.statuses = {rank: self._status(rank) for rank in self.ranks}

    def _status(self, rank: int) -> dict[str, Any] | None:
        return read_json(self.run.status(self.attempt, rank))

    def _beat(self) -> None:
        if time.monotonic() - self.last_beat >= BEAT_S:
            self.last_beat = time.monotonic()
            state = {"host": socket.gethostname(), "beat": self.last_beat, "outcome": None}
            try:
                write_json(self.run.node(self.attempt, self.node), state, durable=False)
            except OSError as error:  # a full disk must not end ranks that can still compute
                get_logger().warning("sign of life not written: %s", error)

    def _drain(self) -> Outcome | None:
        if reason := self.stop_reason():
            request_drain(self.run, self.attempt, reason)
        if not self.draining():
            return None
        self.drain_seen = self.drain_seen or time.monotonic()
        waited = time.monotonic() - self.drain_seen
        # Finished rows are in the journals; those in flight are computed again in any case.
        deaf = self.spec.script is None and waited > DEAF_S and self._deaf()
        if waited > self.spec.limits.drain or deaf:
            return Outcome("drained")
        return None

    def _gone(self) -> Outcome | None:
        """A rank that died. `accelerate launch` notices that, too, and knows how, but on a busy node takes seconds."""
        for rank, status in self.statuses.items():
            if not status or status["phase"] == "finished" or process.start_time(status["pid"]):
                continue
            now = time.monotonic(), process.exit_code(status["pid"])
            seen, code = self.gone_seen.setdefault(rank, now)
            if time.monotonic() - seen > GONE_S and not self.draining():
                known = code, self.oom_kills
                error = failure.of_rank(self.run, self.attempt, rank, status["host"], *known)
                return Outcome("failed", error.as_dict())
        return None

    def _deaf(self) -> bool:
        """Whether a rank of this node takes no notice of the request to drain: it is blocked, loading, or in a long
        step. A script may be saving its state: nobody knows but itself."""
        phases = map(_phase, self.statuses.values())
        return any(phase not in ("draining", "finished") for phase in phases)

    def _cut_off(self) -> Outcome | None:
        """Nodes that are out of reach, and agents that are gone, told apart by their lifelines."""
        for node, word in sorted(self.lifelines.broken().items()):
            state = read_json(self.run.node(self.attempt, node)) or {}
            if state.get("outcome"):
                continue  # it was lost after its work
            host, here = state.get("host", f"node {node}"), socket.gethostname()
            if word == "died":
                return self._failed(f"the agent of node {node} died", host, None)
            # Both ends of a line notice, and each may be the first to say so: they say the same.
            far, near = ((self.node, here), host) if node == 0 else ((node, host), here)
            lost = NodeLost(
                f"node {far[0]} is out of reach of node 0, {near}",
                where=far[1],
                cause="one of the two has lost its network, or its power",
                fix=f"launcher resume {self.run.path}",
            )
            return Outcome("failed", lost.as_dict())
        return None

    def _peers(self) -> Outcome | None:
        for node in range(self.plan.nodes):
            state = None if node == self.node else read_json(self.run.node(self.attempt, node))
            if state is None:
                continue
            outcome = state["outcome"]
            if outcome and outcome["kind"] == "failed":
                return Outcome(**outcome)
            age = self.fresh.age(("node", node), state["beat"])
            if outcome is None and age > self.spec.limits.stall:
                return self._failed(
                    f"the agent of node {node} has been silent for {age:.0f} s", state["host"], None
                )
        return None

    def _deadlines(self) -> Outcome | None:
        limits, waited = self.spec.limits, time.monotonic() - self.started
        for rank, status in self.statuses.items():
            phase = _phase(status)
            if phase == "finished":
                continue  # other replicas may have much left to do
            if status is None or phase in ("starting", "joining"):
                if waited > limits.join:
                    return self._not_joined()
                continue
            if self.fresh.age(("rank", rank), status["updated"]) > limits.stall:
                what = (
                    f"rank {rank} has shown no sign of life for limits.stall ({limits.stall:.0f} s)"
                )
                return self._failed(what, status["host"], rank)
            loading = self.fresh.age(("phase", rank), phase)
            if phase == "loading" and loading > limits.load:
                what = (
                    f"rank {rank} has been loading for more than limits.load ({limits.load:.0f} s)"
                )
                return self._failed(what, status["host"], rank)
            at = (phase, *(status.get(name) for name in ("steps", "blocks", "rows_done")))
            idle = self.fresh.age(("step", rank), at)
            # A script is held to it from its first word about its steps on.
            steps_told = self.spec.script is None or status["steps"]
            if phase == "running" and steps_told and idle > limits.step * self._patience(rank):
                what = f"rank {rank} has been in one step for more than limits.step ({limits.step:.0f} s)"
                return self._failed(what, status["host"], rank)
        return None

    def _patience(self, rank: int) -> int:
        """A step of a replica's first rank lasts until the others have done their parts: one of those that is
        stuck is to be blamed first, by whichever node's agent it is."""
        ranks = self.plan.ranks_of(self.plan.placements[rank].replica)
        return 2 if len(ranks) > 1 and rank == ranks[0] else 1

    def _not_joined(self) -> Outcome | None:
        """Blame a rank that never came up, wherever it was to be, before those that wait for it."""
        every = self.plan.placements
        phases = {p.rank: _phase(self._status(p.rank)) for p in every}
        late = [p for p in every if phases[p.rank] == "starting"]
        late += [p for p in every if phases[p.rank] == "joining"]
        if not late:
            return None  # the last one has just come
        state = read_json(self.run.node(self.attempt, late[0].node))
        host = state["host"] if state else f"node {late[0].node}, whose agent never spoke"
        limit = self.spec.limits.join
        what = f"rank {late[0].rank} did not join within limits.join ({limit:.0f} s)"
        return self._failed(what, host, late[0].rank)

    def _failed(self, what: str, host: str, rank: int | None) -> Outcome:
        return Outcome(
            "failed", failure.describe(self.run, self.attempt, what, host, rank).as_dict()
        )

    def _ended(self, code: int) -> Outcome:
        self._look()
        phases = {rank: _phase(status) for rank, status in self.statuses.items()}
        if code == 0 and all(phase == "finished" for phase in phases.values()):
            return Outcome("drained" if self.draining() else "done")
        known = self.oom_kills
        error = failure.of_ranks(self.run, self.attempt, self.node, code, phases, known)
        asked = (self.draining() or self.stop_reason()) and not self.run.rank_errors(self.attempt)
        return Outcome("drained") if asked else Outcome("failed", error.as_dict())

    def gather(self, own: Outcome) -> Outcome:
        """On node 0: the worst outcome of all nodes. The others may work on as long as they show signs of life."""
        outcomes = {self.node: own}
        while own.kind != "failed" and len(outcomes) < self.plan.nodes:
            self._check_current()
            if cut_off := self._cut_off():
                return cut_off
            for node in set(range(self.plan.nodes)) - outcomes.keys():
                state = read_json(self.run.node(self.attempt, node)) or {"outcome": None}
                if state["outcome"]:
                    outcomes[node] = Outcome(**state["outcome"])
                elif self.fresh.age(("end", node), state.get("beat")) > self.spec.limits.stall:
                    what = f"the agent of node {node} fell silent before its ranks had ended"
                    outcomes[node] = self._failed(what, state.get("host", f"node {node}"), None)
            time.sleep(POLL_S)
        return max(outcomes.values(), key=lambda o: ("done", "drained", "failed").index(o.kind))


def _phase(status: dict[str, Any] | None) -> str:
    return status["phase"] if status else "starting"
