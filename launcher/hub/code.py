"""Code that comes with a model. It runs only where the spec trusts it, and then only what somebody could have read: the
code of one commit, or of the model's own directory."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from launcher.errors import UsageError
from launcher.hub.files import CONFIG
from launcher.job.spec import ModelSpec

_COMMIT = re.compile(r"[0-9a-f]{40}")
_CONFIGS = (CONFIG, "tokenizer_config.json")


def is_pinned(model: ModelSpec) -> bool:
    """Whether the model's code can't change behind the spec's back."""
    return not model.trust_remote_code or bool(_COMMIT.fullmatch(model.revision or ""))


def not_pinned(model: ModelSpec, commit: str | None) -> UsageError:
    """``commit`` is what the branch or tag stands for now, if that is known."""
    from huggingface_hub import constants

    named = repr(model.revision) if model.revision else "its main branch"
    at = commit or "COMMIT"
    return UsageError(
        f"model.trust_remote_code runs code of {model.path}, and what {named} holds can change any day",
        where="model.revision",
        fix=f"read the code at {constants.ENDPOINT}/{model.path}/tree/{at}, then set model.revision: {at}"
        + ("" if commit else " (the 40 digits of a commit)"),
    )


def has_code(folder: Path) -> bool:
    """Whether the files are there that the model's configs take classes from."""
    return all((folder / f"{module}.py").is_file() for _, module in _modules(folder))


def check_own(folder: Path) -> None:
    """Raises UsageError where a config takes classes from another repository, whose commit nobody names."""
    for repository, module in _modules(folder):
        if repository:
            raise UsageError(
                f"the model takes code from another repository, {repository} ({module}.py)",
                where=str(folder),
                cause="model.revision says nothing about the commit of that one",
                fix="copy the model to a directory, that file beside it, and its name in the config's auto_map",
            )


def _modules(folder: Path) -> list[tuple[str, str]]:
    """(repository, module) of the classes in the configs' auto_map; no repository: the model's own."""
    found = []
    for name in _CONFIGS:
        for entry in _classes(folder / name):
            repository, _, inside = entry.rpartition("--")
            found.append((repository, inside.partition(".")[0]))
    return found


def _classes(config: Path) -> list[str]:
    try:
        content = json.loads(config.read_bytes())
    except (OSError, ValueError, RecursionError):
        return []  # whoever needs the file says what is wrong with it
    mapped: Any = content.get("auto_map") if isinstance(content, dict) else None
    values = mapped.values() if isinstance(mapped, dict) else [mapped]
    every = [each for value in values for each in (value if isinstance(value, list) else [value])]
    return [each for each in every if isinstance(each, str)]
