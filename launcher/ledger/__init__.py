"""Ledger: who computes which rows, what became of them, and the results in input order.

Rows are cut into chunks; a rank claims a chunk, appends its rows to a journal of its own, and when every
row is in some journal, anybody merges them. Promises: a row that counts as synced survives any crash;
a rank of an attempt that was replaced can't add rows; every row ends up in exactly one result file.
"""

from launcher.ledger.attempts import check_current, end_attempt, is_over, open_attempt, successor
from launcher.ledger.claims import Chunk, Claims
from launcher.ledger.journal import Journal
from launcher.ledger.manifest import read_manifest, results, verify, write_manifest
from launcher.ledger.merge import Counts, merge
from launcher.ledger.reader import Finished, finished_rows, missing_rows

__all__ = [
    "Chunk",
    "Claims",
    "Counts",
    "Finished",
    "Journal",
    "check_current",
    "end_attempt",
    "finished_rows",
    "is_over",
    "merge",
    "missing_rows",
    "open_attempt",
    "read_manifest",
    "results",
    "successor",
    "verify",
    "write_manifest",
]
