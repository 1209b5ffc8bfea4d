"""The watching screen: where the time went so far, who lags behind, and that it fits its terminal."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from report_runs import Pipeline
from rich.console import Console

from launcher.report import sofar
from launcher.report.sofar import SharesSoFar, stragglers
from launcher.report.watch import screen

NOW = 1000.0


def rank(number: int, **changes: Any) -> dict[str, Any]:
    """A rank that has run for 100 s and done 50 rows."""
    usual: dict[str, Any] = {
        "attempt": "w0000-a0001",
        "rank": number,
        "replica": number,
        "host": f"n{number}.site",
        "phase": "running",
        "phase_since": NOW - 100,
        "updated": NOW,
        "heard_s": 0.4,
        "rows_done": 50,
        "rows_failed": 0,
        "completion_tokens": 5000,
    }
    found = {**usual, **changes}
    return {"last_phase": found["phase"], **found}


def state(ranks: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    attempt = {"name": "w0000-a0001", "world": 0, "draining": None, "state": "running"}
    usual = {
        "run": "demo-0001",
        "path": "/shared/runs/demo-0001",
        "state": "running",
        "rows": {"total": 400, "done": 100, "failed": 2},
        "tokens_per_s": 150.0,
        "eta_s": 300.0,
        "scheduler": "slurm",
        "jobs": {"77": "running"},
        "attempts": [attempt],
        "ranks": ranks,
        "failure": None,
    }
    return {**usual, **changes}


def lines(shown: Any, width: int = 100) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(shown)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"heard_s": 30.0}, "silent for 30 s"),
        ({"phase": "loading"}, "still loading"),
        ({"rows_done": 20}, "40% of the others' rows/s"),
        ({"rows_done": 45}, None),
        ({"phase": "serving", "rows_done": 0}, None),
        ({"phase": "finished", "heard_s": 60.0}, None),
    ],
)
def test_who_lags_behind_and_why(changes: dict[str, Any], says: str | None) -> None:
    found = stragglers([rank(0), rank(1), rank(2, **changes)])
    assert found == ({("w0000-a0001", 2): says} if says else {})


def test_nobody_lags_while_all_are_loading_or_one_is_alone() -> None:
    loading = [rank(number, phase="loading") for number in range(2)]
    assert stragglers(loading) == {}
    assert stragglers([rank(0, rows_done=1)]) == {}


def test_the_screen_fits_and_shows_those_that_lag() -> None:
    ranks = [rank(number) for number in range(40)] + [rank(40, phase="loading")]
    shares = {
        ("w0000-a0001", 0): dict(zip(sofar.SHARES, (0.6, 0.1, 0, 0.2, 0.06, 0.04), strict=True))
    }
    shown = lines(screen(state(ranks), shares, rows=8))
    assert len(shown) < 8 + 12
    assert "100 of 400 rows, 2 failed, 150 tok/s, 5m00s left" in shown[3]
    assert "so far: 60 % busy, 20 % bubble, 10 % transfer" in shown
    late = next(line for line in shown if "still loading" in line)
    assert late.split()[:3] == ["40", "40", "n40"]
    first = next(line for line in shown if line.startswith("0 "))
    assert first.split()[-6:] == ["60", "%", "20", "%", "10", "%"]
    assert "... and 34 more" in shown


def test_worlds_and_failures_are_on_it() -> None:
    second = {"name": "w0001-a0002", "world": 1, "draining": "asked", "state": "running"}
    first = {"name": "w0000-a0001", "world": 0, "draining": None, "state": "failed"}
    failure = {
        "where": "rank 3 on n1",
        "what": "out of memory",
        "cause": None,
        "fix": "fewer slots",
    }
    now = state(
        [rank(0), rank(0, attempt="w0001-a0002")], attempts=[first, second], failure=failure
    )
    shown = "\n".join(lines(screen(now, {}, rows=8)))
    assert "worlds: w0000-a0001 failed, w0001-a0002 draining (asked)" in shown
    assert "rank 3 on n1: out of memory" in shown
    assert "so far" not in shown


def test_shares_so_far_are_those_of_the_summary_and_are_not_read_at_every_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Pipeline().write(tmp_path, complete=False)
    name = run.list_attempts()[-1].name
    so_far, ranks = SharesSoFar(run), [rank(0, attempt=name)]
    found = so_far.look(ranks)
    assert found
    for shares in found.values():
        assert sum(shares.values()) == pytest.approx(1.0)
    monkeypatch.setattr(sofar, "Measured", None)  # to read again would fail
    assert so_far.look(ranks) is found
