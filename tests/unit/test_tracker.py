"""What W&B is told of a run, and that neither its absence nor its silence harms the run."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from jobs import wait_for
from ledger_runs import FIRST, answer, fail, make_run, write
from specs import MINIMAL

from launcher import prepare
from launcher.disk import write_json
from launcher.errors import PreflightError, Superseded
from launcher.job.load import dump_spec, load_resolved, load_spec
from launcher.logs import get_logger
from launcher.run import Run
from launcher.runtime import process, tracker
from launcher.runtime.exporter import Exporter

# Stands for the package where it is not the point: notes what it is told, beside the run directory.
PACKAGE = """
import json
from pathlib import Path
from types import SimpleNamespace

class Error(Exception):
    pass

class Logged:
    def __init__(self, out):
        self._out, self.summary = out, {}

    def log(self, figures):
        with self._out.open("a") as out:
            out.write(json.dumps(figures) + "\\n")

    def finish(self):
        with self._out.open("a") as out:
            out.write(json.dumps(self.summary) + "\\n")

def Settings(**given):
    return given

def teardown():
    pass

def init(**given):
    out = Path(given["dir"]).with_name("told")
    with out.open("a") as file:
        file.write(json.dumps(given) + "\\n")
    BODY
    return Logged(out)
"""
NO_NETWORK = 'if given["mode"] == "online": raise Error("no network")'


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "PATIENCE_S", 300.0)


def a_run(tmp_path: Path, more: str = "") -> Run:
    run = make_run(tmp_path, 3)
    (run.attempts / FIRST.name).mkdir()
    spec = tmp_path / "job.yaml"
    spec.write_text(MINIMAL + "wandb: {project: sums}\n" + more)
    run.spec.write_text(spec.read_text())
    run.job.write_text(dump_spec(load_spec(spec).spec))
    return run


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str = "pass") -> None:
    (folder / "wandb.py").write_text(PACKAGE.replace("BODY", body))
    monkeypatch.setenv("PYTHONPATH", str(folder))


def export(run: Run, rank: int = 0) -> None:
    """What an agent does, around an attempt in which two of three rows are finished."""
    with Exporter(run, tracker.Tracker(run, 0)):
        write(run, FIRST, rank, answer(0), fail(1))


def told(tmp_path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]


def test_it_is_told_how_the_run_goes_and_what_came_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch)
    run = a_run(tmp_path, "slurm: {array: 2}\n")
    export(run)
    write_json(run.summary, {"tokens_per_s": 12.5, "bubble": None, "stages": []})
    write_json(run.manifest, {})
    export(run, rank=1)
    begun, *looks, _, again, _, _, end = told(tmp_path)
    assert (begun["project"], begun["mode"]) == ("sums", "online")
    assert (begun["name"], begun["group"]) == ("run-w0000", "run")
    expected = load_resolved(run.job).model_dump(mode="json", exclude={"script", "accelerate"})
    del expected["notify"]["command"], expected["slurm"]["setup"]  # others can read it there
    assert begun["config"] == expected
    assert (looks[-1]["rows/ok"], looks[-1]["rows/failed"], looks[-1]["rows/waiting"]) == (1, 1, 1)
    assert again["id"] == begun["id"]  # W&B goes on with the same run
    assert end == {"tokens_per_s": 12.5}


def test_without_a_network_it_is_kept_offline_and_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch, NO_NETWORK)
    run = a_run(tmp_path)
    export(run)
    assert [line["mode"] for line in told(tmp_path) if "mode" in line] == ["online", "offline"]
    assert run.tracker_log(0).read_text().count("wandb sync") == 1


@pytest.mark.parametrize(
    ("body", "says"),
    [("raise RuntimeError('no')", "it ended"), ("import time; time.sleep(600)", "did not finish")],
)
def test_one_that_fails_or_hangs_is_a_line_in_the_log(
    body: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(get_logger(), "propagate", True)
    if "sleep" in body:
        monkeypatch.setattr(tracker, "PATIENCE_S", 1.0)
    stand_in(tmp_path, monkeypatch, body)
    run = a_run(tmp_path)
    with caplog.at_level(logging.WARNING):
        export(run)
    (warning,) = [record.message for record in caplog.records]
    assert says in warning
    assert 'state="failed"} 1' in run.metrics.read_text()


def test_it_outlives_the_ranks_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch)
    own = tracker.Tracker(a_run(tmp_path), 0)
    rank = process.start(["sleep", "600"], tmp_path / "log", {"PATH": "/usr/bin:/bin"})
    process.end(rank)
    assert own._child.poll() is None
    own.close()
    assert process.start_time(own._child.pid) is None


def test_a_plan_without_the_package_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> None:
        raise prepare.PackageNotFoundError(name)

    monkeypatch.setattr(prepare, "distribution", absent)
    spec = tmp_path / "job.yaml"
    spec.write_text(MINIMAL + "wandb:\n  project: sums\n")
    with pytest.raises(PreflightError, match=r"launcher\[wandb\]") as caught:
        prepare.plan_job(spec, [], here=True, say=lambda _: None)
    assert f"{spec}:5:12" in str(caught.value)


def test_the_real_one_of_somebody_who_never_logged_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="pip install 'launcher[wandb]'")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")  # its own errors go nowhere from a test
    run = a_run(tmp_path)
    export(run)
    said = run.tracker_log(0).read_text()
    assert "kept offline" in said
    (kept,) = (run.path / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"rows/failed" in kept.read_bytes(), said


def test_an_agent_that_was_superseded_tells_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch, "import time; time.sleep(600)")
    run = a_run(tmp_path)
    following = tracker.Tracker(run, 0)
    with pytest.raises(Superseded), Exporter(run, following):
        wait_for(run.metrics.exists)
        run.metrics.write_text("the successor's")
        raise Superseded("attempt w0000-a0002 has taken over")
    assert run.metrics.read_text() == "the successor's"
    assert following._child.poll() is not None
