"""Report: one inert file with the figures of summary.json, of any length of run, with whatever is there."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_runs import Pipeline

from launcher.ledger import Counts
from launcher.measure.bubble import SHARES
from launcher.report import html
from launcher.report.compare import of_run
from launcher.report.html import render, write_report
from launcher.run import Run, read_json, write_json
from launcher.runtime import coordinator

EVIL = "</script><img src=x onerror=alert(1)><script>alert(2)</script>{{ 7*7 }}'\"&"


class Parsed(HTMLParser):
    """Elements with their attributes, and the text of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self._open = tag
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            self.scripts[-1] += data
        elif self._open != "style":
            self.words.append(data)

    def values(self, key: str) -> list[Any]:
        found = [attrs for _, attrs in self.elements if attrs.get("data-key") == key]
        return [json.loads(attrs["data-value"]) for attrs in found]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def make(folder: Path, **changes: Any) -> tuple[Run, Parsed]:
    run = Pipeline(steps=10, **changes).write(folder)
    return run, Parsed(render(run))


def test_the_figures_are_those_of_the_summary(tmp_path: Path) -> None:
    run, page = make(tmp_path, replicas=2)
    summary = json.loads(run.summary.read_text())
    for name in ("tokens_per_s", "utilization", "bubble", "wall_s", "load_s"):
        assert page.values(name)[0] == summary[name]
    for share in SHARES:
        shown = page.values(share)
        stages = [stage[share] for stage in summary["stages"]]
        assert shown[-len(stages) :] == stages
    pairs = [pair for pair in of_run(summary["compared"]) if pair["predicted"] or pair["measured"]]
    assert len(pairs) >= 6
    for side in ("predicted", "measured"):
        assert page.values(side)[: len(pairs)] == [pair[side] for pair in pairs]
    for words in (
        "llama70b-pipeline",
        "complete",
        "llama-2-70b",
        "pipeline (ring)",
        "2 replicas of 4 stages",
        "2023-11-14 22:13:20 to",
        "on node0, node1",
        "replica 1, stage 3",
        "3 groups of 16 slots",
        "1 x too_long",
        "4096 tokens",
        "210 ms",
        "43.2 GiB",
    ):
        assert words in page.text


def test_a_rank_with_several_shards_is_one_lane(tmp_path: Path) -> None:
    """Backend tensor_parallel: a table has a row for each shard, the timeline what their rank did."""
    pipeline = Pipeline(steps=10, stage_s=(0.01,))
    run = pipeline.write(tmp_path, complete=False)
    made = pipeline.plan()
    devices = [made.devices[0].model_copy(update={"shard": shard}) for shard in (0, 1)]
    run.plan.write_text(made.model_copy(update={"devices": devices}).model_dump_json())
    text = render(run)
    page = Parsed(text)
    assert "stage 0.0" in page.text and "stage 0.1" in page.text
    assert re.findall(r'"label": ?"([^"]*)"', text) == ["stage 0"]


def test_the_page_asks_for_nothing_and_runs_one_script(tmp_path: Path) -> None:
    run, page = make(tmp_path)
    text = render(run)
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", text)
    sources = [attrs[k] for _, attrs in page.elements for k in ("src", "href") if k in attrs]
    assert sources == ["data:,"]
    policy = next(a["content"] for _, a in page.elements if "http-equiv" in a)
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    name = EVIL.replace("/", "_")
    pipeline = Pipeline(steps=4, host=EVIL, attempts=2, name=name)
    run = pipeline.write(tmp_path)
    run.errors.write_text(json.dumps({"index": 0, "id": EVIL, "code": EVIL, "message": EVIL}))
    plan = json.loads(run.plan.read_text())
    write_json(run.plan, {**plan, "reasons": [EVIL], "script": EVIL})
    attempt = run.list_attempts()[0]
    error = dict.fromkeys(("what", "where", "cause", "fix"), EVIL)
    write_json(run.attempt_file(attempt, "ended"), {"kind": "failed", "error": error})
    page = Parsed(render(run))
    assert len(page.scripts) == 2
    assert not any(tag == "img" for tag, _ in page.elements)
    assert not any(key.startswith("on") for _, attrs in page.elements for key in attrs)
    assert name in page.words
    assert page.text.count("{{ 7*7 }}") > 5
    assert EVIL in json.loads(page.scripts[0])["lanes"][0]["title"]


def test_secrets_stay_out(tmp_path: Path) -> None:
    secret = "hf_" + "Ab1" * 11
    run = Pipeline(steps=4, attempts=2).write(tmp_path)
    attempt = run.list_attempts()[0]
    error = {"what": f"401 for {secret}", "where": None, "cause": None, "fix": None}
    write_json(run.attempt_file(attempt, "ended"), {"kind": "failed", "error": error})
    run.errors.write_text(json.dumps({"index": 0, "id": "a", "code": "x", "message": secret}))
    text = render(run)
    assert secret not in text
    assert text.count("[secret]") == 2


def test_a_run_that_is_not_complete_says_so_and_gets_no_summary(tmp_path: Path) -> None:
    run = Pipeline(steps=4, attempts=1).write(tmp_path, complete=False)
    (attempt,) = run.list_attempts()
    run.attempt_file(attempt, "ended").unlink()
    for path in (run.attempt_file(attempt, "attempt"), *run.statuses(attempt)):
        os.utime(path, (1e9, 1e9))
    write_report(run)
    page = Parsed(run.report.read_text())
    assert "silent" in page.text
    assert ", heard of at" in page.text
    run.statuses(attempt)[0].touch()
    write_report(run)
    page = Parsed(run.report.read_text())
    assert "under way" in page.text
    assert "This run is not complete" in page.text
    assert run.trace.exists()
    assert not run.summary.exists()


def test_an_older_report_never_takes_the_place_of_the_final_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Pipeline(steps=4).write(tmp_path / "whole")
    run = Pipeline(steps=4).write(tmp_path, complete=False)
    once = html.render

    def completed_meanwhile(of: Run) -> str:
        text = once(of)
        for name in ("summary.json", "errors.jsonl", "outputs.jsonl"):
            shutil.copy(whole.path / name, of.path / name)
        return text

    monkeypatch.setattr(html, "render", completed_meanwhile)
    write_report(run)
    assert "This run is not complete" not in run.report.read_text()


def test_the_trace_of_a_run_under_way_is_not_kept(tmp_path: Path) -> None:
    run = Pipeline(steps=4).write(tmp_path)
    run.trace.write_text("{}")  # of an earlier look, before the run was resumed and completed
    write_report(run)
    assert json.loads(run.trace.read_text())["traceEvents"]


def test_a_complete_run_gets_back_what_it_lost(tmp_path: Path) -> None:
    run = Pipeline(steps=4).write(tmp_path)
    before = json.loads(run.summary.read_text())
    rows, tokens = {"total": 42, "ok": 40, "failed": 2}, before["tokens"]
    write_json(run.manifest, {"rows": rows, "tokens": tokens, "sha256": {}, "input": []})
    run.summary.unlink()
    write_report(run)
    assert json.loads(run.summary.read_text()) == before
    assert json.loads(run.trace.read_text())["traceEvents"]


@pytest.mark.parametrize(
    "missing", ["timeline", "status", "attempts", "errors.jsonl", "summary.json", "job.yaml"]
)
def test_missing_pieces_leave_the_rest(tmp_path: Path, missing: str) -> None:
    run = Pipeline(steps=4).write(tmp_path)
    gone = run.path / missing
    if gone.is_dir():
        shutil.rmtree(gone)
        gone.mkdir()
    else:
        gone.unlink()
    page = Parsed(render(run))
    assert "Where the time went" in page.text
    assert ("No spans were recorded" in page.text) == (missing == "timeline")


def test_nothing_at_all_was_measured(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "empty")
    run.plan.write_text(Pipeline().plan().model_dump_json())
    page = Parsed(render(run))
    for words in ("not started", "No attempt was made", "not measured", "No tokens were counted"):
        assert words in page.text


def test_the_first_token_is_explained_where_there_is_one(tmp_path: Path) -> None:
    run, page = make(tmp_path)
    assert "First token: from the moment" in page.text
    summary = read_json(run.summary)
    write_json(run.summary, {**summary, "ttft_s": dict.fromkeys(("mean", "p50", "p95"))})
    page = Parsed(render(run))
    assert "Decode step" in page.text and "First token" not in page.text


def test_a_report_that_fails_does_not_keep_a_run_from_completing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = Pipeline(steps=4).write(tmp_path)

    def fail(_: Run) -> None:
        raise RuntimeError("no template")

    def manifest(of: Run, _: Counts) -> None:
        write_json(of.manifest, {})

    monkeypatch.setattr(coordinator, "write_report", fail)
    monkeypatch.setattr(coordinator.ledger, "merge", lambda _: Counts(1, 1, 0, 1, 1))
    monkeypatch.setattr(coordinator.ledger, "write_manifest", manifest)
    monkeypatch.setattr(logging.getLogger("launcher"), "propagate", True)
    assert coordinator.finish(run)
    assert run.manifest.exists()
    assert not run.report.exists()
    assert "no template" in caplog.text
    assert f"launcher report {run.path}" in caplog.text
