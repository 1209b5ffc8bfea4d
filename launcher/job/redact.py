"""Secrets in text: found, so that a spec with one is refused, and blacked out in messages."""

from __future__ import annotations

import re
from collections.abc import Iterator

from launcher.errors import Problem
from launcher.job.nodes import place

SECRET = "this looks like a secret, and specs are saved with the run"
SECRET_HINT = "leave it to the environment (HF_TOKEN, or a file that `setup` reads)"
_TOKENS = (
    r"\b(?:hf_(?:(?=[a-z]*[0-9A-Z])[A-Za-z0-9]{10,}|[a-z]{16,})"
    r"|sk-(?:proj-|svcacct-|ant-[a-z0-9]+-)?[A-Za-z0-9_]{16,}"
    r"|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|AKIA[0-9A-Z]{16}"
    r"|xox[abprs]-[A-Za-z0-9-]{10,})"
)
_KEY_BLOCK = r"-----BEGIN [A-Z ]*PRIVATE KEY-----"
_IN_URL = r"(?<=://)[^\s/:@'\"]{0,256}:[^\s/@'\"]{1,256}(?=@)"
# An assignment of a literal; $VARIABLE and $(command) are read where the job runs, and stay.
_ASSIGNED = (
    r"(?i:\b[A-Z0-9_]{0,64}(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY)=)"
    r"(?P<assigned>['\"]?[^\s$'\";&|`<>][^\s'\";]{3,})"
)
_SECRET = re.compile(f"(?:{_TOKENS}|{_KEY_BLOCK}|{_IN_URL}|{_ASSIGNED})")


def has_secret(text: str) -> bool:
    """Whether something in ``text`` looks like a secret."""
    return _SECRET.search(text) is not None


def secret_problems(text: str, name: str) -> Iterator[Problem]:
    """What looks like a secret in the file ``name``, comments included: specs are copied whole."""
    for match in _SECRET.finditer(text):
        offset = match.start("assigned") if match["assigned"] else match.start()
        yield Problem(place(name, text, offset), SECRET, SECRET_HINT)


def redact(text: str) -> str:
    """``text`` with everything that looks like a secret blacked out."""
    return _SECRET.sub(_black, text)


def _black(match: re.Match[str]) -> str:
    kept = match.group()[: match.start("assigned") - match.start()] if match["assigned"] else ""
    return kept + "[secret]"
