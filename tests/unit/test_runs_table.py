"""Tables of runs: `launcher list` and `launcher status`."""

from __future__ import annotations

from shown import lines, state

from launcher.report.table import runs_table, status_table


def test_runs_of_the_same_name_are_called_by_their_directories() -> None:
    rows = [state(run="a-0001", path=f"/{user}/a-0001") for user in ("one", "two")]
    shown = " ".join(lines(runs_table([*rows, state(run="b-0001", path="/one/b-0001")])))
    assert "/one/a-0001" in shown and "/two/a-0001" in shown
    assert "b-0001" in shown and "/one/b-0001" not in shown


def test_runs_are_one_line_each() -> None:
    done = state(run="demo-0002", state="complete", tokens_per_s=None, eta_s=None, jobs={})
    shown = lines(runs_table([state(), done]))
    assert shown[2].split() == [
        "demo-0001",
        "running",
        "1,000",
        "41",
        "%",
        "2",
        "812",
        "5m12s",
        "77_0",
        "77_1",
    ]
    assert shown[3].split() == ["demo-0002", "complete", "1,000", "41", "%", "2", "-", "-"]


def test_status_shows_rows_jobs_attempts_and_ranks() -> None:
    shown = lines(status_table(state()))
    assert shown[:2] == ["demo-0001: running", "/runs/demo-0001"]
    assert shown[3].endswith("412 of 1,000 rows, 2 failed, 812 tok/s, 5m12s left")
    assert shown[3].count("█") == 8
    assert "slurm: 77_0 running, 77_1 pending" in shown
    assert "w0000-a0001  1970-01-01 00:00:00  node1  77_0  running" in shown
    assert shown[-1].split()[:7] == ["0", "0", "node1", "running", "1m30s", "410", "2"]
    (rank,) = state()["ranks"]
    gone = {**rank, "phase": "gone", "heard_s": 40.0}
    shown = lines(status_table(state(ranks=[gone])))
    assert "gone, was running" in shown[-1]
    assert shown[-1].endswith("40.0s ago")


def test_status_of_a_failed_run_says_what_to_do() -> None:
    failure = {
        "what": "out of memory\nlast line",
        "where": "rank 1 on n2",
        "cause": "too many slots",
        "fix": "resume",
    }
    shown = lines(
        status_table(state(state="failed", failure=failure, ranks=[], attempts=[], jobs={}))
    )
    assert shown[-4:] == [
        "rank 1 on n2: out of memory",
        "last line",
        "  likely cause: too many slots",
        "  next: resume",
    ]
