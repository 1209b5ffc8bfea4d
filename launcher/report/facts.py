"""Facts of a run for its report: state, when and where, headline figures, attempts, errors, the spec."""

from __future__ import annotations

import json
import time
from collections import Counter
from itertools import islice
from pathlib import Path, PurePath
from typing import Any

from launcher import disk, ledger
from launcher.job.load import load_resolved
from launcher.job.redact import redact
from launcher.plan.plan import Plan
from launcher.records import Attempt, latest
from launcher.report import cells, units
from launcher.report.measured import Interval, statuses
from launcher.report.sofar import FRESH_S
from launcher.report.summary import build_summary
from launcher.run import Run, read_json

MOST_ERRORS, ERRORS_READ, MESSAGE = 20, 10_000, 400

Summary = dict[str, Any]


def is_complete(run: Run) -> bool:
    """Whether every row is in the results, or a script has ended well; the manifest follows the report."""
    return (run.outputs if run.has_rows else run.summary).exists()


def find_summary(run: Run) -> Summary:
    """The run's summary.json; made from what there is so far while rows are missing, or if the file is gone."""
    found: Summary | None = read_json(run.summary) if is_complete(run) else None
    return found or build_summary(run, counts_so_far(run))


def counts_so_far(run: Run) -> ledger.Counts:
    """Those of the manifest, else those of the journals; tokens are then what the ranks say, of rows in flight too."""
    manifest = ledger.read_manifest(run)
    if manifest:
        rows, tokens = manifest["rows"], manifest["tokens"]
        return ledger.Counts(
            rows["total"], rows["ok"], rows["failed"], tokens["prompt"], tokens["completion"]
        )
    total = done = failed = 0
    if any(run.input.iterdir()):
        seen = ledger.Finished(run).update()
        total, done, failed = len(seen.done), int(seen.done.sum()), int(seen.failed.sum())
    ranks = list(statuses(run, *run.list_attempts()))
    return ledger.Counts(
        total,
        done - failed,
        failed,
        sum(rank.prompt_tokens for rank in ranks),
        sum(rank.completion_tokens for rank in ranks),
    )


def attempt_rows(run: Run) -> list[dict[str, Any]]:
    """What became of each attempt, and its error; of one that is not over, when something was ``heard`` of it, and how
    many seconds ago."""
    attempts, now = run.list_attempts(), disk.clock(run.attempts)
    last = latest(attempts)
    rows = []
    for attempt in attempts:
        info = read_json(run.attempt_file(attempt, "attempt")) or {}
        ended = read_json(run.attempt_file(attempt, "ended")) or {}
        drain = read_json(run.attempt_file(attempt, "drain")) or {}
        error = ended.get("error") or {}
        open_end = "not over" if attempt == last[attempt.world] else "superseded"
        ages = () if ended else (disk.age(path, now) for path in _signs(run, attempt))
        heard_s = min(ages, default=None)
        rows.append(
            {
                "name": attempt.name,
                "host": info.get("host"),
                "job_id": info.get("job_id"),
                "started": info.get("started"),
                "ended": ended.get("ended"),
                "outcome": ended.get("kind") or open_end,
                "heard": None if heard_s is None else now - heard_s,
                "heard_s": heard_s,
                "reason": _text(drain.get("reason")),
                "error": {
                    name: _text(error.get(name)) for name in ("where", "what", "cause", "fix")
                },
            }
        )
    return rows


def state_of(run: Run, attempts: list[dict[str, Any]]) -> str:
    """complete | failed | stopped | under way | silent | not started, from the run directory alone."""
    if is_complete(run):
        return "complete"
    if not attempts:
        return "not started"
    working = [attempt for attempt in attempts if attempt["outcome"] == "not over"]
    if working:
        return "under way" if min(each["heard_s"] for each in working) < FRESH_S else "silent"
    return "failed" if attempts[-1]["outcome"] == "failed" else "stopped"


def _signs(run: Run, attempt: Attempt) -> list[Path]:
    """What ranks of an attempt write while it goes; one whose ranks have said nothing yet counts from its start."""
    return [run.attempt_file(attempt, "attempt"), *run.statuses(attempt)]


def row_errors(run: Run) -> dict[str, Any]:
    """How often each code is in errors.jsonl (its first ten thousand lines), and the first messages."""
    if not run.errors.exists():
        return {"codes": [], "shown": [], "read": 0}
    with run.errors.open("rb") as file:
        rows = [_row_error(line) for line in islice(file, ERRORS_READ)]
    codes = Counter(row["code"] for row in rows).most_common()
    return {"codes": codes, "shown": rows[:MOST_ERRORS], "read": len(rows)}


def _row_error(line: bytes) -> dict[str, str]:
    """Of a row in our own form, or in that of OpenAI's batch results; of a line that is neither that it is damaged."""
    try:
        row = json.loads(line)
        error = row.get("error") or row
        return {
            "id": str(row.get("id") if "index" in row else row.get("custom_id")),
            "code": str(error.get("code")),
            "message": _text(error.get("message")) or "",
        }
    except (ValueError, AttributeError, RecursionError):
        return {"id": "", "code": "damaged", "message": "this line is no row: launcher verify"}


def spec_facts(run: Run) -> dict[str, str | None]:
    """The model's name, the resolved spec as text without secrets."""
    if not run.job.exists():
        return {"model": None, "text": None}
    model = load_resolved(run.job).model
    name = PurePath(model.path).name + (f" at {model.revision[:12]}" if model.revision else "")
    return {"model": name, "text": redact(run.job.read_text(errors="replace"))}


def in_short(plan: Plan, summary: Summary, model: str | None) -> list[str]:
    """The split, the precision and the batch in a few words each; of a script its ranks."""
    ranks = f"{cells.plural(summary['world_size'], 'rank')} on {summary['device']}"
    if plan.accelerate is not None:
        return ["script", ranks, f"mixed precision {plan.dtype}"]
    stages = len({device.stage for device in plan.devices})
    batch = plan.batch
    facts = [
        model,
        cells.split(plan.strategy, plan.schedule),
        f"{cells.plural(plan.replicas, 'replica')} of {cells.plural(stages, 'stage')}",
        f"{units.short(plan.parameters)} parameters in {plan.dtype}",
        f"{cells.plural(batch.groups, 'group')} of {cells.plural(batch.slots, 'slot')}",
        ranks,
    ]
    return [fact for fact in facts if fact]


def moment(seconds: float | None) -> str:
    """Date and time, UTC."""
    if seconds is None:
        return units.UNKNOWN
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


def when(alive: list[Interval]) -> str:
    """From the first attempt's start to the last word of the last."""
    if not alive:
        return "not started"
    begin, end = min(b for b, _ in alive), max(e for _, e in alive)
    first, last = moment(begin), moment(end)
    same_day = first[:10] == last[:10]
    return f"{first} to {last[11:] if same_day else last} UTC"


def _text(text: Any) -> str | None:
    if text is None:
        return None
    clean = redact(cells.clean(text))
    return clean if len(clean) <= MESSAGE else clean[:MESSAGE] + " ..."
