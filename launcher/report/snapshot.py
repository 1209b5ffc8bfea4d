"""How a run is doing at a moment, for programs: what the metrics file and W&B are told, read once for both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from launcher import ledger
from launcher.records import RankStatus, latest
from launcher.report.measured import statuses
from launcher.report.sofar import rate
from launcher.run import Run, read_json

# Of the summary: figures of the whole run.
TOTALS = ("tokens_per_s", "wall_s", "load_s", "generate_s", "utilization", "bubble", "gpu_hours")


@dataclass(frozen=True)
class Snapshot:
    """``rows`` by state (ok, failed, waiting); ``ranks`` of each world's latest attempt; ``summary`` of a complete run."""

    run: str
    rows: dict[str, int]
    ranks: list[RankStatus]
    attempts: int
    complete: bool
    summary: dict[str, Any] | None

    @classmethod
    def take(cls, run: Run, finished: ledger.Finished) -> Snapshot:
        """``run`` now. ``finished`` is kept between calls: it reads what was added to the journals."""
        seen = finished.update()
        done, failed = int(seen.done.sum()), int(seen.failed.sum())
        attempts = run.list_attempts()
        complete = run.manifest.exists()
        return cls(
            run=run.name,
            rows={"ok": done - failed, "failed": failed, "waiting": len(seen.done) - done},
            ranks=list(statuses(run, *latest(attempts).values())),
            attempts=len(attempts),
            complete=complete,
            summary=read_json(run.summary) if complete else None,
        )

    def figures(self) -> dict[str, float]:
        """Numbers that change while the run goes. Tokens and steps are those of the latest attempts."""
        rates = [value for rank in self.ranks if (value := rate(vars(rank), "completion_tokens"))]
        peaks = [rank.figures.get("peak_memory_bytes", 0.0) for rank in self.ranks]
        return {
            **{f"rows/{state}": count for state, count in self.rows.items()},
            "tokens/prompt": sum(rank.prompt_tokens for rank in self.ranks),
            "tokens/completion": sum(rank.completion_tokens for rank in self.ranks),
            "tokens/per_s": sum(rates),
            "steps": sum(rank.steps for rank in self.ranks),
            "ranks/running": sum(rank.phase in ("running", "serving") for rank in self.ranks),
            "memory/peak_bytes": max(peaks, default=0.0),
            "attempts": self.attempts,
        }

    def totals(self) -> dict[str, float]:
        """Figures of the summary; none before the run is complete."""
        found = {name: (self.summary or {}).get(name) for name in TOTALS}
        return {name: value for name, value in found.items() if value is not None}
