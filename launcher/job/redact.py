"""Secrets in text: found, so that a spec with one is refused, and blacked out in messages.

Found is what has the form of a well-known token, what is assigned to the name of a secret, and whatever this process's
environment holds under such a name.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from launcher import environ
from launcher.errors import Problem
from launcher.job.nodes import MAX_PROBLEMS, Node, place

BLACK = "[secret]"
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
    r"(?i:(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY)=|\bbearer )"
    r"(?P<assigned>['\"]?[^\s$'\";&|`<>][^\s'\";]{3,})"
)
# What a text must hold in lower case for a pattern to find anything: looking for that takes no time.
_SECRETS = [
    (("hf_", "sk-", "gh", "glpat-", "akia", "xox"), re.compile(_TOKENS)),
    (("-----begin ",), re.compile(_KEY_BLOCK)),
    (("://",), re.compile(_IN_URL)),
    (("token", "secret", "passw", "key=", "bearer "), re.compile(_ASSIGNED)),
]


def has_secret(text: str) -> bool:
    """Whether something in ``text`` looks like a secret."""
    return bool(_found(text))


def secret_problems(text: str, name: str) -> Iterator[Problem]:
    """What looks like a secret in the file ``name``, comments included: specs are copied whole."""
    for offset in sorted(_found(text)):
        yield Problem(place(name, text, offset), SECRET, SECRET_HINT)


def hidden_problems(root: Node) -> Iterator[Problem]:
    """Secrets that the text of a spec does not show: in what its escapes, and values of several lines, become."""
    scalars = list(_scalars(root))
    if has_secret("\n".join(text for text, _ in scalars)):
        yield from (
            Problem(where, SECRET, SECRET_HINT) for text, where in scalars if has_secret(text)
        )


def _scalars(node: Node) -> Iterator[tuple[str, str]]:
    """Each key and value of text below, and its place."""
    if isinstance(node.value, str):
        yield node.value, node.where
        return
    if isinstance(node.value, dict):
        yield from ((key, child.key_where) for key, child in node.value.items())
    for child in node.value.values() if isinstance(node.value, dict) else node.value:
        yield from _scalars(child)


def redact(text: str) -> str:
    """``text`` with everything that looks like a secret blacked out."""
    for secret in environ.secrets():
        text = text.replace(secret, BLACK)
    for pattern in _patterns(text):
        text = pattern.sub(_black, text)
    return text


def _found(text: str) -> set[int]:
    """Where secrets begin."""
    found = set()
    for pattern in _patterns(text):
        for match in itertools.islice(pattern.finditer(text), MAX_PROBLEMS):
            found.add(match.start(match.lastgroup or 0))
    found |= {text.find(secret) for secret in environ.secrets()} - {-1}
    return found


def _patterns(text: str) -> list[re.Pattern[str]]:
    """Those that may find something in ``text``."""
    low = text.lower()
    return [pattern for signs, pattern in _SECRETS if any(sign in low for sign in signs)]


def _black(match: re.Match[str]) -> str:
    return match.group()[: match.start(match.lastgroup or 0) - match.start()] + BLACK
