"""Input files for tests of what reads them, and their indexes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from launcher.input.prompts import InputIndex, build_index
from launcher.job.spec import JobSpec


def spec_of(path: Path | str | list[str], form: str = "auto", **more: Any) -> JobSpec:
    path = str(path) if isinstance(path, Path) else path
    given = {"path": path, "format": form}
    return JobSpec.model_validate({"name": "t", "model": {"path": "m"}, "input": given, **more})


def index_of(tmp_path: Path, content: bytes, form: str = "jsonl", **more: Any) -> InputIndex:
    """The index of one file with ``content``."""
    tmp_path.mkdir(exist_ok=True)
    file = tmp_path / "in.jsonl"
    file.write_bytes(content)
    build_index(spec_of(file, form, **more), tmp_path / "index", writers=1)
    return InputIndex(tmp_path / "index")


def lines(*rows: Any) -> bytes:
    return b"".join(
        (row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows
    )


def body_row(url: str = "/v1/chat/completions", **body: Any) -> dict[str, Any]:
    if "chat" in url:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **body}
    else:
        body = {"model": "m", "prompt": "hi", **body}
    return {"custom_id": "a", "method": "POST", "url": url, "body": body}
