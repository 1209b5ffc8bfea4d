"""An independent look at a finished run. It imports nothing of ours: it knows what docs/run-directory.md says, and
reads every file by its own means.

    python tests/faults/checker.py RUN [UNDISTURBED_RUN]
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

OUTPUT = {"index", "id", "text", "finish_reason", "prompt_tokens", "completion_tokens"}
ERROR = {"index", "id", "code", "message", "file", "line"}
PLACE = {"file", "line"}  # of an error, in no journal: the input tells it
ATTEMPT = re.compile(r"(w\d{4})-a(\d{4})")

Row = dict[str, Any]


def check(run: Path, undisturbed: Path | None = None, damaged: int = 0) -> list[str]:
    """What is wrong with a complete run whose results are JSONL, one sentence each; none if it is sound.

    ``undisturbed``: a run of the same spec and input that nothing happened to; results must equal its results.
    ``damaged``: lines of journals that a test has damaged.
    """
    if not (run / "manifest.json").is_file():
        return ["there is no manifest.json: the run is not complete"]
    manifest = json.loads((run / "manifest.json").read_text())
    found: list[str] = []
    outputs = rows_of(run / "outputs.jsonl", OUTPUT, found)
    errors = rows_of(run / "errors.jsonl", ERROR, found)
    found += _hashes(run, manifest)
    found += _once_and_in_order(outputs, errors, manifest)
    found += _of_the_input(outputs + errors, manifest)
    found += _from_journals(run, outputs + errors, damaged)
    if undisturbed is not None:
        found += _as_undisturbed(outputs, errors, undisturbed)
    return found


def rows_of(path: Path, keys: set[str], problems: list[str]) -> list[Row]:
    """The rows of a result file; what is no row of that form goes to ``problems``."""
    if not path.is_file():
        problems.append(f"{path.name} is missing")
        return []
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        problems.append(f"{path.name} ends within a line")
    rows = []
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        try:
            row = json.loads(line)
        except ValueError:
            problems.append(f"{path.name}:{number} is not JSON")
            continue
        if set(row) - {"choices"} != keys:
            problems.append(f"{path.name}:{number} has the keys {sorted(row)}")
            continue
        if "choices" in row and not _is_first(row, row["choices"]):
            problems.append(f"{path.name}:{number} is not the first of its choices")
        rows.append(row)
    return rows


def _is_first(row: Row, choices: list[Row]) -> bool:
    """Whether the row's own answer is the first of several, and it counts the tokens of all."""
    tokens = sum(choice["completion_tokens"] for choice in choices)
    first = {key: choices[0][key] for key in ("text", "finish_reason")}
    own = {**first, "completion_tokens": tokens}
    return len(choices) > 1 and all(row[key] == value for key, value in own.items())


def _hashes(run: Path, manifest: Row) -> Iterator[str]:
    for name in ("outputs.jsonl", "errors.jsonl"):
        if _sha256(run / name) != manifest["sha256"].get(name):
            yield f"{name} has another sha256 than the manifest says"
    for entry in manifest["input"]:
        if _sha256(Path(entry["path"])) != entry["sha256"]:
            yield f"{entry['path']} has another sha256 than the manifest says"


def _once_and_in_order(outputs: list[Row], errors: list[Row], manifest: Row) -> Iterator[str]:
    for name, rows in (("outputs", outputs), ("errors", errors)):
        indices = [row["index"] for row in rows]
        if any(second <= first for first, second in pairwise(indices)):
            yield f"{name}.jsonl is not in input order"
    told = manifest["rows"]
    if (told["ok"], told["failed"]) != (len(outputs), len(errors)):
        yield f"the manifest counts {told}, there are {len(outputs)} and {len(errors)} rows"
    every = sorted(row["index"] for row in outputs + errors)
    doubled = {first for first, second in pairwise(every) if first == second}
    lost = set(range(told["total"])) - set(every)
    beyond = set(every) - set(range(told["total"]))
    for what, which in (("lost", lost), ("doubled", doubled), ("invented", beyond)):
        if which:
            yield f"{len(which)} rows were {what}, the first is {min(which)}"


def _of_the_input(rows: list[Row], manifest: Row) -> Iterator[str]:
    """Every row under the id that the input gives it; a row without one is called by its number."""
    lines, places = list[bytes](), list[tuple[str, int]]()
    for entry in manifest["input"]:
        for number, line in enumerate(Path(entry["path"]).read_bytes().split(b"\n"), 1):
            if line.strip():
                lines.append(line)
                places.append((entry["path"], number))
    if len(lines) != manifest["rows"]["total"]:
        yield f"the input has {len(lines)} rows, the manifest says {manifest['rows']['total']}"
    for row in rows:
        if "line" in row and (row["file"], row["line"]) not in places[row["index"] :][:1]:
            yield f"row {row['index']} is not in {row['file']}:{row['line']}"
        try:
            asked = json.loads(lines[row["index"]])
        except (ValueError, IndexError, RecursionError):
            continue  # a row that can't be asked, or one that _once_and_in_order tells of
        if isinstance(asked, dict) and str(asked.get("id", row["index"])) != row["id"]:
            yield f"row {row['index']} has the id {row['id']!r}, the input says {asked.get('id')!r}"


def _from_journals(run: Path, rows: list[Row], damaged: int) -> Iterator[str]:
    """Every result is a whole record of a journal, within what no later attempt had fenced off."""
    known: dict[int, list[Row]] = {}
    found = []
    for path in [run / "input" / "bad.jsonl", *sorted((run / "journals").glob("w*.jsonl"))]:
        records, offsets = journal(path, fence(run, path.name))
        found += [f"{path.name} is damaged at byte {offset}" for offset in offsets]
        for record in records:
            known.setdefault(record["index"], []).append(record)
    yield from found if len(found) != damaged else ()
    for row in rows:
        record = {key: value for key, value in row.items() if key not in PLACE}
        if record not in known.get(row["index"], []):
            yield f"row {row['index']} is not in any journal as it is in the results"


def journal(path: Path, limit: int | None = None) -> tuple[list[Row], list[int]]:
    """The whole records of a journal's first ``limit`` bytes, and where lines are damaged that are not its torn tail."""
    records, suspects, damaged, offset = [], list[int](), list[int](), 0
    data = path.read_bytes()[:limit]
    for line in io.BytesIO(data):
        checksum, payload = line[:8], line[9:-1]
        if line.endswith(b"\n") and checksum == b"%08x" % zlib.crc32(payload):
            records.append(json.loads(payload))
            damaged += suspects
            suspects.clear()
        else:
            suspects.append(offset)
        offset += len(line)
    return records, damaged


def fence(run: Path, name: str) -> int | None:
    """Bytes of a journal that count: as many as there were when the next attempt of its world was opened."""
    own = ATTEMPT.match(name)
    if own is None:
        return None
    sizes = []
    for path in (run / "attempts").glob(f"{own[1]}-a*/attempt.json"):
        other = ATTEMPT.match(path.parent.name)
        assert other is not None
        if int(other[2]) > int(own[2]):
            sizes.append(json.loads(path.read_text())["fences"].get(name, 0))
    return min(sizes, default=None)


def _as_undisturbed(outputs: list[Row], errors: list[Row], undisturbed: Path) -> Iterator[str]:
    for name, keys, rows in (("outputs", OUTPUT, outputs), ("errors", ERROR, errors)):
        due = rows_of(undisturbed / f"{name}.jsonl", keys, [])
        if len(rows) != len(due):
            yield f"{name}.jsonl has {len(rows)} rows, that of the undisturbed run {len(due)}"
        other = [mine["index"] for mine, its in zip(rows, due, strict=False) if mine != its]
        if other:
            yield f"{len(other)} rows of {name}.jsonl are not the undisturbed run's, the first is {other[0]}"


def _sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


if __name__ == "__main__":
    wrong = check(*map(Path, sys.argv[1:]))
    print("\n".join(wrong) or "sound")
    sys.exit(bool(wrong))
