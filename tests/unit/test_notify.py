"""The command on completion: when it runs, what it is told, and that it can harm no run."""

from __future__ import annotations

from pathlib import Path

import pytest
from ledger_runs import FIRST, answer, fail, make_run, write

from launcher.job.spec import JobSpec
from launcher.logs import get_logger
from launcher.runtime import notify as module
from launcher.runtime.notify import notify

SAY = "env | grep ^LAUNCHER_ | sort >> {}"


def spec(command: str | None, *on: str) -> JobSpec:
    told = {"command": command, **({"on": list(on)} if on else {})}
    given = {"name": "t", "model": {"path": "m"}, "input": {"path": "p"}, "notify": told}
    return JobSpec.model_validate(given)


def test_it_is_told_what_became_of_the_run(tmp_path: Path) -> None:
    run, said = make_run(tmp_path, 3), tmp_path / "said"
    write(run, FIRST, 0, answer(0), fail(1))
    notify(run, spec(SAY.format(said)), "failed", "rank 3: $(touch owned) `id`\n")
    facts = dict(line.split("=", 1) for line in said.read_text().splitlines() if "=" in line)
    assert facts["LAUNCHER_STATE"] == "failed"
    assert facts["LAUNCHER_RUN"] == str(run.path)
    assert (facts["LAUNCHER_ROWS"], facts["LAUNCHER_FAILED_ROWS"]) == ("2", "1")
    assert facts["LAUNCHER_MESSAGE"] == "rank 3: $(touch owned) `id`"
    assert not Path("owned").exists()


def test_only_states_that_are_asked_for_and_complete_once(tmp_path: Path) -> None:
    run, said = make_run(tmp_path, 1), tmp_path / "said"
    notify(run, spec(f"echo x >> {said}", "complete"), "failed")
    notify(run, spec(None), "complete")
    assert not said.exists()
    for _ in range(2):
        notify(run, spec(f"echo x >> {said}"), "complete")
    assert said.read_text() == "x\n"


def test_a_command_that_fails_or_hangs_is_told_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(get_logger(), "propagate", True)
    run = make_run(tmp_path, 1)
    notify(run, spec("echo no such address >&2; exit 3"), "failed")
    assert "status 3: no such address" in caplog.text
    monkeypatch.setattr(module, "PATIENCE_S", 0.2)
    notify(run, spec("exec sleep 60"), "failed")
    assert "timed out" in caplog.text
