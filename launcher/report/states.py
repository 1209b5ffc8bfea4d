"""How runs are doing, as tables: `launcher list` and `launcher status`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from launcher.report import bars, cells, units

State = Mapping[str, Any]  # a state.RunState as a dict

STYLES = {
    "complete": "green",
    "done": "green",
    "running": "cyan",
    "queued": "yellow",
    "drained": "yellow",
    "failed": "bold red",
    "stopped": "magenta",
    "gone": "magenta",
    "superseded": "dim",
    "unknown": "yellow",
}


def runs_table(rows: Sequence[State]) -> RenderableType:
    """One line per run, called by its name, or by its directory where others have the same name."""
    table = cells.table("run", "state", ">rows", ">done", ">failed", ">tok/s", ">left", "job")
    named = Counter(row["run"] for row in rows)
    for row in rows:
        total, failed = row["rows"]["total"], row["rows"]["failed"]
        table.add_row(
            Text(cells.clean(row["run"] if named[row["run"]] == 1 else row["path"])),
            _word(row["state"]),
            units.count(total),
            units.percent(row["rows"]["done"] / total if total else None),
            Text(units.count(failed), "red" if failed else ""),
            units.amount(row["tokens_per_s"]),
            units.duration(row["eta_s"]),
            Text(cells.clean(" ".join(row["jobs"])), "dim"),
        )
    return table


def status_table(state: State) -> RenderableType:
    """How one run is doing: rows, jobs, attempts, ranks, and what went wrong."""
    return Group(
        *head_lines(state),
        *_attempts(state["attempts"]),
        *_ranks(state["ranks"], state["rows"]["total"]),
        *(
            Text(f"rank {cells.clean(name)}: {cells.clean(why)}", "yellow")
            for name, why in state.get("stragglers", {}).items()
        ),
        *failure_lines(state["failure"]),
    )


def head_lines(state: State) -> list[RenderableType]:
    """Which run, where, in what state, how far, and its jobs."""
    return [
        Text.assemble((cells.clean(state["run"]), "bold"), ": ", _word(state["state"])),
        Text(cells.clean(state["path"]), "dim", overflow="fold"),
        Text(),
        *_progress(state),
        *_jobs(state),
    ]


def steps(state: State) -> str:
    """How far a script says that it is."""
    return f"step {units.count(max((rank['steps'] for rank in state['ranks']), default=0))}"


def _progress(state: State) -> list[RenderableType]:
    if not state["rows"]["total"]:
        return [Text(f"a script, {steps(state)}")] if state["ranks"] else []
    done, total, failed = (state["rows"][name] for name in ("done", "total", "failed"))
    line = [f"{units.count(done)} of {units.count(total)} rows"]
    line += [f"{units.count(failed)} failed"] if failed else []
    line += [f"{units.amount(state['tokens_per_s'])} tok/s"] if state["tokens_per_s"] else []
    line += [f"{units.duration(state['eta_s'])} left"] if state["eta_s"] is not None else []
    meter = bars.meter(done / total, full_is_good=True) if total else Text()
    return [cells.beside(meter, Text(", ".join(line)))]


def _jobs(state: State) -> list[RenderableType]:
    jobs = [f"{cells.clean(job)} {cells.clean(word)}" for job, word in state["jobs"].items()]
    return [Text(f"{state['scheduler']}: {', '.join(jobs)}")] if jobs else []


def _attempts(attempts: Sequence[Mapping[str, Any]]) -> list[RenderableType]:
    if not attempts:
        return []
    table = cells.table("attempt", "started (UTC)", "host", "job", "outcome")
    for attempt in attempts[-cells.MOST_ROWS :]:
        started = attempt["started"]
        moment = time.gmtime(started or 0.0)
        when = units.UNKNOWN if started is None else time.strftime("%Y-%m-%d %H:%M:%S", moment)
        state = attempt["state"]
        drains = state == "running" and attempt["draining"]
        table.add_row(
            attempt["name"],
            when,
            Text(cells.clean(attempt["host"] or units.UNKNOWN)),
            Text(cells.clean(attempt["job_id"] or units.UNKNOWN)),
            _word(f"draining: {attempt['draining']}" if drains else state),
        )
    return [Text(), table]


def _ranks(ranks: Sequence[Mapping[str, Any]], rows: int) -> list[RenderableType]:
    if not ranks:
        return []
    if not rows:
        return [Text(), _script_ranks(ranks), *cells.more(len(ranks), "status/")]
    failed = any(rank["rows_failed"] for rank in ranks)
    columns = ["rank", ">replica", "host", "phase", ">for", ">rows", *[">failed"] * failed]
    table = cells.table(*columns, ">new tokens", ">heard")
    for rank in ranks[: cells.MOST_ROWS]:
        table.add_row(
            str(rank["rank"]),
            str(rank["replica"]),
            Text(cells.host(rank["host"])),
            phase(rank),
            units.duration(max(0.0, rank["updated"] - rank["phase_since"])),
            units.count(rank["rows_done"]),
            *[Text(units.count(rank["rows_failed"]), "red" if rank["rows_failed"] else "")]
            * failed,
            units.count(rank["completion_tokens"]),
            f"{units.duration(rank['heard_s'])} ago",
        )
    return [Text(), table, *cells.more(len(ranks), "status/")]


def phase(rank: Mapping[str, Any]) -> Text:
    """What a rank is at; of one that is gone, what it was at."""
    known, said = (cells.clean(rank[name]) for name in ("phase", "last_phase"))
    return Text(known) if known == said else Text.assemble(_word(known), f", was {said}")


def _script_ranks(ranks: Sequence[Mapping[str, Any]]) -> RenderableType:
    table = cells.table("rank", "host", "phase", ">for", ">step", ">heard")
    for rank in ranks[: cells.MOST_ROWS]:
        table.add_row(
            str(rank["rank"]),
            Text(cells.clean(rank["host"])),
            phase(rank),
            units.duration(max(0.0, rank["updated"] - rank["phase_since"])),
            units.count(rank["steps"]),
            f"{units.duration(rank['heard_s'])} ago",
        )
    return table


def failure_lines(failure: Mapping[str, Any] | None) -> list[RenderableType]:
    """What went wrong, if something did."""
    if failure is None:
        return []
    where = f"{cells.clean(failure['where'])}: " if failure["where"] else ""
    lines: list[RenderableType] = [
        Text.assemble((where, "bold"), (cells.clean(failure["what"]), "red"))
    ]
    for label, key in (("likely cause", "cause"), ("next", "fix")):
        if failure[key]:
            lines.append(Text(f"  {label}: {cells.clean(failure[key])}"))
    return [Text(), *lines]


def _word(word: str) -> Text:
    return Text(cells.clean(word), STYLES.get(word.partition(":")[0], ""))
