"""Site profiles: a cluster's own values for ``slurm:`` and ``resources:``, behind those of a spec.

A profile is a YAML file with those two sections. ``slurm.site: NAME`` names it; without the key,
``default.yaml`` is used if there is one, and ``site: null`` asks for none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from launcher import environ
from launcher.errors import Problem
from launcher.job.nodes import Node, parse
from launcher.job.problems import did_you_mean
from launcher.job.redact import secret_problems
from launcher.job.source import read_text

_SECTIONS = ("slurm", "resources")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


def site_folders() -> list[Path]:
    """Where profiles are looked for: the user's own, then those of a checkout of this project."""
    return [environ.config_home() / "sites", Path(__file__).parents[2] / "slurm" / "sites"]


def site_names() -> list[str]:
    """The profiles that there are."""
    return sorted({file.stem for folder in site_folders() for file in folder.glob("*.yaml")})


def apply_site(root: Node) -> Iterator[Problem]:
    """Fill what the spec leaves out from its site profile.

    Keys of ``slurm:`` are spelled with underscores afterwards, and ``site`` is null: the values
    are in the spec now. Raises SpecError where the profile can't be read.
    """
    slurm = _section(root, "slurm")
    yield from _underscores(slurm)
    wanted = slurm.child("site")
    profile: Path | None = site_folders()[0] / "default.yaml"
    if wanted is not None:
        profile, problem = _find(wanted)
        if problem:
            yield problem
    if profile and (wanted is not None or profile.is_file()):
        yield from _merge(root, profile)
    if isinstance(slurm.value, dict):
        slurm.value["site"] = Node("", slurm.where, slurm.where, plain=True)


def _section(root: Node, name: str) -> Node:
    """The mapping behind ``name``, made if it is not there; another node if it is no mapping."""
    assert isinstance(root.value, dict)
    node = root.value.setdefault(name, Node({}, root.where, root.where))
    if node.is_null():
        node.value = {}
    return node


def _underscores(section: Node) -> Iterator[Problem]:
    """sbatch spells ``mail-type``; both spellings are one key."""
    if not isinstance(section.value, dict):
        return
    renamed: dict[str, Node] = {}
    for key, node in section.value.items():
        name = key.replace("-", "_")
        if name in renamed:
            first = renamed[name].key_where
            yield Problem(node.key_where, f"`{key[:80]}` is given twice; first at {first}")
        renamed.setdefault(name, node)
    section.value = renamed


def _find(wanted: Node) -> tuple[Path | None, Problem | None]:
    if wanted.is_null():
        return None, None
    if not (isinstance(wanted.value, str) and _NAME.fullmatch(wanted.value)):
        return None, Problem(wanted.where, "`slurm.site` should be the name of a site profile")
    for folder in site_folders():
        file = folder / f"{wanted.value}.yaml"
        if file.is_file():
            return file, None
    where = f"profiles are files in {site_folders()[0]}"
    known = did_you_mean(wanted.value, site_names())
    hint = f"{known}; {where}" if known else where
    return None, Problem(wanted.where, f"there is no site profile `{wanted.value}`", hint)


def _merge(root: Node, file: Path) -> Iterator[Problem]:
    text = read_text(file)
    profile, problems = parse(text, str(file))
    yield from problems
    yield from secret_problems(text, str(file))
    assert isinstance(profile.value, dict)
    for key, given in profile.value.items():
        if key not in _SECTIONS:
            yield Problem(
                given.key_where,
                f"unknown key `{key[:80]}` in a site profile",
                "a site profile holds `slurm` and `resources`",
            )
            continue
        section = _section(root, key)
        if key == "slurm":
            yield from _underscores(given)
        if not isinstance(given.value, dict):
            if not given.is_null():
                yield Problem(given.where, f"`{key}` should be a mapping")
        elif isinstance(section.value, dict):
            yield from _fill(section.value, given.value)


def _fill(section: dict[str, Node], given: dict[str, Node]) -> Iterator[Problem]:
    for name, node in given.items():
        if name == "site":
            yield Problem(node.key_where, "a site profile can't name another")
        elif name not in section:
            section[name] = node
