"""The ``script:`` section: what `task: script` runs on every rank."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from launcher.job.section import Auto, Matching, Section

Argument = Annotated[str, Matching(r"[^\x00]*", "text without NUL")]


class ScriptSpec(Section):
    """A program that every rank of the world runs, as `accelerate launch` would start it. It goes on from its own
    checkpoints after a restart; docs/scripts.md says what it is told."""

    path: str = Field(min_length=1, description="a Python file, or a program; relative to the spec")
    args: list[Argument] = Field(default_factory=list, description="its arguments, one by one")
    directory: str = Field(
        ".", min_length=1, description="its working directory, relative to the spec"
    )
    processes_per_node: Annotated[int, Field(ge=1, le=1024)] | Auto = Field(
        "auto", description="ranks of a node; auto: its GPUs, one where it has none"
    )
