"""Runs of tests on the dev cluster: submit one, ask for it, wait for its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jobs import launcher, wait_for

Env = dict[str, str]


def submit(spec: Path, run: Path, env: Env) -> list[str]:
    """Ids of the jobs."""
    jobs = json.loads(launcher("submit", spec, "--run-dir", run, "--json", env=env).stdout)["jobs"]
    assert jobs
    return list(jobs)


def state(run: Path, env: Env) -> dict[str, Any]:
    return dict(json.loads(launcher("status", run, "--json", env=env).stdout))


def wait_complete(run: Path, env: Env) -> None:
    """Wait for the manifest; fail at once when an attempt failed for good."""

    def over() -> bool:
        latest = {path.name[:5]: path.name for path in sorted(run.glob("attempts/w*"))}
        errors = [end["error"] for name in latest.values() for end in ended(run, name)]
        return (run / "manifest.json").exists() or any(
            error and error["error"] != "NodeLost" for error in errors
        )

    wait_for(over)
    found = state(run, env)
    assert found["state"] == "complete", json.dumps(found["failure"], indent=1) + said(run)


def ended(run: Path, which: str = "*") -> list[dict[str, Any]]:
    """How the attempts of these names ended, those that did, in their order."""
    return [
        json.loads(path.read_text()) for path in sorted(run.glob(f"attempts/{which}/ended.json"))
    ]


def rows_of(run: Path, attempt: int) -> int:
    """Rows in the journals of the attempts of this number, over all worlds."""
    journals = run.glob(f"journals/w*-a{attempt:04d}-*.jsonl")
    return sum(path.read_bytes().count(b"\n") for path in journals)


def said(run: Path) -> str:
    return "".join(path.read_text()[-2000:] for path in run.glob("submitit/*.out"))
