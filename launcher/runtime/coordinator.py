"""Coordinator: when every row is accounted for, the results in input order, the summary, the manifest last.

Anyone may finish a run at any moment, and doing so twice changes nothing: every file is published whole.
"""

from __future__ import annotations

from launcher import ledger
from launcher.measure import trace
from launcher.report.summary import build_summary
from launcher.run import Run, write_json


def finish(run: Run) -> bool:
    """True if the run is complete now; False if rows are missing."""
    if run.manifest.exists():
        return True
    counts = ledger.merge(run)
    if counts is None:
        return False
    write_json(run.summary, build_summary(run, counts))
    trace.write_trace(run.timelines(), run.trace)
    ledger.write_manifest(run, counts)
    return True
