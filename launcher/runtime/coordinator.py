"""Coordinator: when every row is accounted for, the results in input order, the summary, the manifest last.

Anyone may finish a run at any moment, and doing so twice changes nothing: every file is published whole.
"""

from __future__ import annotations

from launcher import ledger, logs
from launcher.report.html import write_report
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
    _show(run)
    ledger.write_manifest(run, counts)
    return True


def _show(run: Run) -> None:
    """Trace and report: no results depend on them, so whatever is wrong with them must not keep the run from
    completing. It is in the log, and `launcher report` makes what is missing."""
    logger = logs.get_logger()
    try:
        write_report(run)
    except Exception:
        logger.exception("no report of this run yet; `launcher report %s` tries again", run.path)
