"""The documentation as tests read it: commands in its code blocks and in its sentences, specs, links."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
import yaml
from markdown_it import MarkdownIt

from launcher.cli import app
from launcher.job.spec import JobSpec

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
NEEDED = {
    "name": "name: it",
    "model": "model: {path: org/model}",
    "input": "input: {path: prompts.jsonl}",
}
PROGRAMS = ("launcher", "make", "python", "srun")


@dataclass(frozen=True)
class Block:
    """A code block of a page, the line where its text begins, and what its fence says it is."""

    page: Path
    line: int
    text: str
    info: str = ""

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def spec(self) -> dict[str, Any] | None:
        """The YAML of a spec, or of a part of one, that this block is; None if it is something else."""
        try:
            data = yaml.safe_load(self.text)
        except yaml.YAMLError:
            return None
        known = isinstance(data, dict) and data.keys() <= JobSpec.model_fields.keys()
        return data if known and data else None

    def completed(self) -> str:
        """The text, with what every spec needs where this is a part of one."""
        given = self.spec() or {}
        needed = ["name"] if given.get("task") == "script" or "script" in given else list(NEEDED)
        missing = [NEEDED[key] for key in needed if key not in given]
        if "script" in given and "task" not in given:
            missing.append("task: script")
        if "accelerate" in given and "script" not in given:
            return "\n".join(["name: it", "task: script", "script: {path: x.py}", self.text])
        return "\n".join([*missing, self.text])


@dataclass(frozen=True)
class Command:
    """A command of a page as words, without prompt, comment and what follows a pipe."""

    block: Block
    line: int
    words: tuple[str, ...]
    ends_with: int = 0

    @property
    def where(self) -> str:
        return f"{self.block.page.relative_to(ROOT)}:{self.line}"


@functools.cache
def blocks(page: Path) -> list[Block]:
    """All code blocks of a page, fenced or indented."""
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    return [
        Block(page, token.map[0] + (2 if token.type == "fence" else 1), token.content, token.info)
        for token in tokens
        if token.type in ("fence", "code_block") and token.map
    ]


def sentences(page: Path) -> Iterator[tuple[int, Any]]:
    """Line and token of every inline piece (code, link) of a page."""
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        for child in token.children or ():
            yield (token.map or [0])[0] + 1, child


def commands(block: Block) -> Iterator[Command]:
    """The commands in a block that begins with one: lines behind `$ `, or else all lines down to an empty one."""
    prompt = "$ " if block.text.startswith("$ ") else ""
    program = block.text.removeprefix(prompt).partition(" ")[0]
    if block.info not in ("", "console", "sh") or not (block.info or program in PROGRAMS):
        return
    for number, line in whole_lines(block):
        if not line and not prompt:
            return
        if line.startswith(prompt) and (words := split(line.removeprefix(prompt))):
            status = re.search(r"#.*exit code (\d+)", line)
            yield Command(block, number, words, int(status[1]) if status else 0)


def whole_lines(block: Block) -> Iterator[tuple[int, str]]:
    """Lines with their numbers; those that a backslash breaks are one."""
    number = block.line
    for line in block.text.replace("\\\n", "\0").split("\n"):
        yield number, line.replace("\0", "")
        number += 1 + line.count("\0")


def split(line: str) -> tuple[str, ...]:
    """The words of a shell's line; none of a line that is none."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        return ()
    for stop in ("|", ">", "&&", ";"):
        if stop in words:
            words = words[: words.index(stop)]
    return tuple(words)


def find(words: tuple[str, ...]) -> tuple[Any, list[str]]:
    """The command that ``words`` call, and the words behind its name."""
    command: Any = typer.main.get_command(app)
    rest = list(words[1:])
    while hasattr(command, "commands"):
        assert rest and rest[0] in command.commands, f"there is no command {' '.join(words)}"
        command = command.commands[rest.pop(0)]
    return command, rest


def parse(words: tuple[str, ...]) -> Any:
    """The context of the command that ``words`` call: its parameters, as the real command line reads them.

    Raises click's UsageError for words that it does not take.
    """
    command, rest = find(words)
    return command.make_context(command.name, rest)
