"""A run as Prometheus reads it: the text of its metrics file, from a snapshot."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from launcher.measure.bubble import SHARES
from launcher.records import RankStatus
from launcher.report.snapshot import Snapshot

PLACE = ("world", "replica", "stage", "shard", "rank")
Labels = Mapping[str, object]
Samples = Sequence[tuple[Labels, float]]
# Figures of a rank's status that are its own, not the engine's percentiles of the moment.
FIGURES = {
    "peak_memory_bytes": ("peak_memory_bytes", "The most memory that a rank took."),
    "load_s": ("load_seconds", "How long a rank loaded its weights."),
    "bytes_read": ("read_bytes", "What a rank read from storage while loading."),
}


@dataclass
class _Text:
    """Families of samples in Prometheus's text form."""

    run: str
    lines: list[str] = field(default_factory=list)

    def family(self, name: str, kind: str, says: str, samples: Samples) -> None:
        """One metric with its samples; nothing where there are none."""
        if samples:
            self.lines += [f"# HELP launcher_{name} {says}", f"# TYPE launcher_{name} {kind}"]
            self.lines += [
                f"launcher_{name}{self._labels(own)} {value!r}" for own, value in samples
            ]

    def _labels(self, own: Labels) -> str:
        pairs = {"run": self.run, **own}.items()
        return "{" + ",".join(f'{key}="{_escaped(value)}"' for key, value in pairs) + "}"


def metrics_text(seen: Snapshot) -> str:
    """The metrics of a run, as it was when it was looked at."""
    text = _Text(seen.run)
    rows = [({"state": state}, count) for state, count in seen.rows.items()]
    text.family("rows", "gauge", "Rows by state.", rows)
    _of_ranks(text, seen.ranks)
    text.family("attempts_total", "counter", "Attempts so far.", [({}, seen.attempts)])
    text.family("complete", "gauge", "1 when the run is complete.", [({}, int(seen.complete))])
    _of_summary(text, seen.summary)
    text.family("updated_seconds", "gauge", "When this was written.", [({}, time.time())])
    return "\n".join(text.lines) + "\n"


def _of_ranks(text: _Text, ranks: list[RankStatus]) -> None:
    labels = [
        {"attempt": r.attempt, "rank": r.rank, "replica": r.replica, "host": r.host} for r in ranks
    ]
    pairs = list(zip(labels, ranks, strict=True))
    phases = [({**own, "phase": rank.phase}, 1.0) for own, rank in pairs]
    text.family("rank_phase", "gauge", "1 for the phase that a rank is in.", phases)
    for name, attribute, says in (
        (
            "rank_rows_done",
            "rows_done",
            "Rows that a rank finished in its attempt, failed ones too.",
        ),
        ("rank_rows_failed", "rows_failed", "Rows of them that failed."),
        ("rank_prompt_tokens", "prompt_tokens", "Prompt tokens of a rank in its attempt."),
        ("rank_completion_tokens", "completion_tokens", "New tokens of a rank in its attempt."),
        ("rank_steps", "steps", "Steps of a rank in its attempt."),
    ):
        samples = [(own, getattr(rank, attribute)) for own, rank in pairs]
        text.family(f"{name}_total", "counter", says, samples)
    heard = [(own, rank.updated) for own, rank in pairs]
    text.family("rank_updated_seconds", "gauge", "A rank's last sign of life.", heard)
    for figure, (name, says) in FIGURES.items():
        known = [(own, rank.figures[figure]) for own, rank in pairs if figure in rank.figures]
        text.family(f"rank_{name}", "gauge", says, known)


def _of_summary(text: _Text, summary: dict[str, Any] | None) -> None:
    """What is known at the end alone: rates, and where each stage's time went."""
    if summary is None:
        return
    for name in ("tokens_per_s", "wall_s", "load_s", "generate_s", "utilization", "bubble"):
        if summary.get(name) is not None:
            text.family(name, "gauge", f"{name} of the summary.", [({}, summary[name])])
    shares = [
        ({key: s.get(key, 0) for key in PLACE} | {"what": what}, s[what])
        for s in summary["stages"]
        for what in SHARES
        if s.get(what) is not None
    ]
    text.family("stage_share", "gauge", "Shares of a stage's time; they add up to 1.", shares)


def _escaped(value: object) -> str:
    return str(value).replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
