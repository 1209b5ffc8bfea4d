"""Coordinator: when every row is accounted for, the results in input order, the summary, the manifest last.

Anyone may finish a run at any moment, and doing so twice changes nothing: every file is published whole.
"""

from __future__ import annotations

from launcher import ledger, logs
from launcher.disk import private
from launcher.errors import RunFailed
from launcher.report.html import write_report
from launcher.report.summary import build_summary
from launcher.run import Run, read_json, write_json

NO_ROWS = ledger.Counts(0, 0, 0, 0, 0)


def finish(run: Run) -> bool:
    """True if the run is complete now; False if rows are missing."""
    if run.manifest.exists():
        return True
    if not run.has_rows:
        return _finish_script(run)
    counts = ledger.merge(run)
    if counts is None:
        return False
    write_json(run.summary, build_summary(run, counts))
    _show(run)
    ledger.write_manifest(run, counts)
    return True


@private()
def restore(run: Run) -> None:
    """Gather what was removed of a complete run's results again, from its journals. Raises RunFailed if these are gone,
    too."""
    lost = [path.name for path in (*ledger.results(run), run.summary) if not path.exists()]
    if not lost:
        return
    counts = ledger.merge(run) if run.has_rows else NO_ROWS
    if counts is None:
        raise RunFailed(
            f"{', '.join(lost)} can't be gathered again: {ledger.missing_rows(run):,} rows are in no journal",
            where=str(run.path),
            cause="files of the run were removed",
            fix=f"remove {run.manifest.name} there; launcher resume {run.path} then computes these rows again",
        )
    if not run.summary.exists():
        write_json(run.summary, build_summary(run, counts))
    if run.has_rows:
        ledger.write_manifest(
            run, counts
        )  # of the files as they are now: Parquet's bytes go by pyarrow's version


def _finish_script(run: Run) -> bool:
    """A script is complete when all its ranks have ended well in one attempt."""
    ended = [read_json(run.attempt_file(attempt, "ended")) or {} for attempt in run.list_attempts()]
    if not any(each.get("kind") == "done" for each in ended):
        return False
    write_json(run.summary, build_summary(run, NO_ROWS))
    _show(run)
    ledger.write_manifest(run, NO_ROWS)
    return True


def _show(run: Run) -> None:
    """Trace and report: no results depend on them, so whatever is wrong with them must not keep the run from
    completing. It is in the log, and `launcher report` makes what is missing."""
    logger = logs.get_logger()
    try:
        write_report(run)
    except Exception:
        logger.exception("no report of this run yet; `launcher report %s` tries again", run.path)
