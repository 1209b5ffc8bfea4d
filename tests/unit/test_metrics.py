"""The metrics file: what Prometheus reads of a run."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ledger_runs import FIRST, answer, fail, make_run, write

from launcher import ledger
from launcher.disk import write_json
from launcher.engine.sequence import Counters
from launcher.logs import get_logger
from launcher.measure.spans import NullRecorder
from launcher.report.metrics import metrics_text
from launcher.report.snapshot import Snapshot
from launcher.run import Run
from launcher.runtime.exporter import Exporter
from launcher.runtime.generate import _between_steps, _in_sweep
from launcher.runtime.heartbeat import Heartbeat

SAMPLE = re.compile(r'(launcher_\w+)\{((?:\w+="(?:[^"\\\n]|\\["\\n])*",?)*)\} (\S+)')


def samples(text: str) -> dict[tuple[str, str], float]:
    """Every sample by name and labels; holds that each line is in Prometheus's form and each family is typed."""
    found = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        match = SAMPLE.fullmatch(line)
        assert match, line
        assert f"# TYPE {match[1]} " in text and f"# HELP {match[1]} " in text
        assert (match[1], match[2]) not in found
        found[match[1], match[2]] = float(match[3])
    return found


def status(run: Run, rank: int, host: str) -> None:
    known = {"attempt": FIRST.name, "rank": rank, "replica": rank, "host": host, "pid": 1}
    told = {"phase": "running", "rows_done": 2, "completion_tokens": 30}
    write_json(run.status(FIRST, rank), {**known, **told, "figures": {"load_s": 1.5}})


def test_rows_and_ranks_of_a_run_that_goes(tmp_path: Path) -> None:
    run = make_run(tmp_path, 5)
    (run.attempts / FIRST.name).mkdir()
    write(run, FIRST, 0, answer(0), fail(1))
    status(run, 0, 'odd"host\\')
    found = samples(metrics_text(Snapshot.take(run, ledger.Finished(run))))
    rows = {labels: value for (name, labels), value in found.items() if name == "launcher_rows"}
    assert rows == {
        'run="run",state="ok"': 1,
        'run="run",state="failed"': 1,
        'run="run",state="waiting"': 3,
    }
    own = f'run="run",attempt="{FIRST.name}",rank="0",replica="0",host="odd\\"host\\\\"'
    assert found["launcher_rank_completion_tokens_total", own] == 30
    assert found["launcher_rank_load_seconds", own] == 1.5
    assert found["launcher_complete", 'run="run"'] == 0
    assert found["launcher_attempts_total", 'run="run"'] == 1


def test_a_complete_run_has_the_figures_of_its_summary(tmp_path: Path) -> None:
    run = make_run(tmp_path, 1)
    stage = {
        "world": 0,
        "replica": 0,
        "stage": 1,
        "rank": 1,
        "busy": 0.75,
        "bubble": 0.25,
        "transfer": None,
    }
    write_json(run.summary, {"tokens_per_s": 12.5, "bubble": None, "stages": [stage]})
    write_json(run.manifest, {})
    found = samples(metrics_text(Snapshot.take(run, ledger.Finished(run))))
    assert found["launcher_tokens_per_s", 'run="run"'] == 12.5
    assert ("launcher_bubble", 'run="run"') not in found
    of_stage = 'run="run",world="0",replica="0",stage="1",shard="0",rank="1",what="busy"'
    assert found["launcher_stage_share", of_stage] == 0.75


def test_the_exporter_writes_at_once_and_at_the_end(tmp_path: Path) -> None:
    run = make_run(tmp_path, 2)
    (run.attempts / FIRST.name).mkdir()
    with Exporter(run):
        write(run, FIRST, 0, answer(0), answer(1))
    found = samples(run.metrics.read_text())
    assert found["launcher_rows", 'run="run",state="ok"'] == 2
    assert [path.name for path in run.path.glob(".*")] == []


def test_steps_of_a_streamed_model_only_grow(tmp_path: Path) -> None:
    """Its rank shows signs of life while a step lasts, which is no step."""
    run = make_run(tmp_path, 1)
    attempt = ledger.open_attempt(run, 0, {})
    beat = Heartbeat(run, attempt, 0, 0, pid=1)
    engine = cast(Any, SimpleNamespace(counters=Counters()))
    seen = []
    for _ in range(3):
        for _ in range(4):
            _in_sweep(beat)
            seen.append(beat.status.steps)
        engine.counters.steps += 1
        _between_steps(engine, beat, NullRecorder())
        seen.append(beat.status.steps)
    beat.close()
    assert seen == sorted(seen)
    assert (beat.status.steps, beat.status.blocks) == (3, 12)


def rows_ok(run: Run) -> float:
    return samples(run.metrics.read_text())["launcher_rows", 'run="run",state="ok"']


def test_one_agent_of_several_keeps_the_file_fresh_and_others_take_over(tmp_path: Path) -> None:
    run = make_run(tmp_path, 4)
    attempts = [ledger.open_attempt(run, world, {}) for world in (0, 1)]
    one, other = (Exporter(run, world=world) for world in (0, 1))
    one._write()
    write(run, attempts[0], 0, answer(0))
    other._write()
    assert rows_ok(run) == 0, "the other agent's file is fresh"
    one._write()
    other._write()
    assert rows_ok(run) == 1
    ledger.end_attempt(run, attempts[0], {"kind": "done"})
    one._write(last=True)
    write(run, attempts[1], 0, answer(1))
    other._write()
    assert rows_ok(run) == 1, "it was changed since the last look"
    other._write()
    assert rows_ok(run) == 2, "nobody changes it any more"


def test_the_last_agent_at_work_writes_the_last_word(tmp_path: Path) -> None:
    run = make_run(tmp_path, 4)
    attempts = [ledger.open_attempt(run, world, {}) for world in (0, 1)]
    one, other = (Exporter(run, world=world) for world in (0, 1))
    for exporter in (one, other, one):
        exporter._write()
    write(run, attempts[1], 0, answer(0))
    other._write(last=True)
    assert rows_ok(run) == 0, "the agent of world 0 is at work, and will tell"
    ledger.end_attempt(run, attempts[0], {"kind": "drained"})
    one._write()
    write(run, attempts[1], 1, answer(1))
    other._write(last=True)
    assert rows_ok(run) == 2


def test_an_exporter_that_can_not_write_says_so_once_and_harms_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(get_logger(), "propagate", True)
    run = make_run(tmp_path, 1)
    run.metrics.mkdir()
    with Exporter(run):
        pass
    assert sum("no metrics" in record.message for record in caplog.records) == 1
    assert run.metrics.is_dir()
