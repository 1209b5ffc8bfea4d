"""The hub of models: whether it answers from here, and as whom. A token is never shown."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from launcher.doctor.finding import Finding

AREA = "hub"
ANSWER_S = 10.0


def examine() -> Iterator[Finding]:
    """Access, and the token if there is one."""
    from huggingface_hub import constants, get_token

    access = _access(constants.ENDPOINT, constants.HF_HUB_OFFLINE)
    yield access
    if get_token() is None:
        says = "none: public models only"
        yield Finding(AREA, "token", "note", says, "for gated and private ones: hf auth login")
    elif access.status == "ok":
        yield _who()
    else:
        yield Finding(AREA, "token", "note", "there is one; only the hub can say whose")
    yield from _token_file(Path(constants.HF_TOKEN_PATH))


def _access(endpoint: str, offline: bool) -> Finding:
    if offline:
        says = "HF_HUB_OFFLINE is set: only models that are here already can be used"
        return Finding(AREA, "access", "note", says, "unset HF_HUB_OFFLINE to fetch others")
    why = _unreachable(endpoint)
    if why is None:
        return Finding(AREA, "access", "ok", f"{endpoint} answers")
    remedy = "set HTTPS_PROXY if the site has one, or fetch models elsewhere and give their folder"
    return Finding(AREA, "access", "warning", f"{endpoint}: {why}", remedy)


def _unreachable(endpoint: str) -> str | None:
    """Why the hub does not answer; None if it does, whatever it says."""
    try:
        with urllib.request.urlopen(f"{endpoint}/api/models?limit=1", timeout=ANSWER_S):
            return None
    except urllib.error.HTTPError as error:
        return None if error.code < 500 else f"status {error.code}"
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__


def _who() -> Finding:
    from huggingface_hub import HfApi

    from launcher.hub.errors import HubFailure, catching

    try:
        with catching():
            name = HfApi().whoami().get("name", "somebody")
    except HubFailure:
        return Finding(AREA, "token", "warning", "the hub refuses it", "hf auth login")
    return Finding(AREA, "token", "ok", f"is that of {name}")


def _token_file(path: Path) -> Iterator[Finding]:
    if path.is_file() and path.stat().st_mode & 0o077:
        yield Finding(AREA, "token file", "warning", f"others may read {path}", f"chmod 600 {path}")
