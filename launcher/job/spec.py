"""JobSpec: everything a user can say in a job spec, with its types, defaults and limits.

The field names are the YAML names. The JSON Schema, the reference page and the "did you mean" hints
are derived from these classes, so a field is stated once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from launcher.job import tasks
from launcher.job.script import ScriptSpec
from launcher.job.section import Auto, Count, Matching, Ranks, Seconds, Section
from launcher.job.slurm import SlurmSpec

__all__ = ["JobSpec", "Seconds", "Section", "SlurmSpec", "strategy_names"]


def strategy_names() -> list[str]:
    """``auto`` and the modules of launcher.strategies, by file name: `job` may not import them."""
    folder = Path(__file__).parents[1] / "strategies"
    return ["auto", *sorted(f.stem for f in folder.glob("*.py") if not f.stem.startswith("_"))]


def _known_strategy(name: str) -> str:
    if name not in strategy_names():
        raise ValueError("should be " + ", ".join(f"'{known}'" for known in strategy_names()))
    return name


_REVISION = r"(?!.*\.\.)[A-Za-z0-9_.][A-Za-z0-9_./+-]{0,254}"
_NAME = "1 to 64 letters (a-z), digits, dots, dashes and underscores"


class ModelSpec(Section):
    """Which model, and in what form its weights are held."""

    path: str = Field(min_length=1, description="a directory (relative to the spec) or a hub id")
    revision: Annotated[str, Matching(_REVISION, "a branch, tag or commit")] | None = Field(
        None, description="of a hub id: branch, tag or commit; the commit is recorded"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attention: Literal["eager", "sdpa", "flash_attention_2"] = "sdpa"
    trust_remote_code: bool = False


class ParallelSpec(Section):
    """How the model is split and how often it is copied."""

    strategy: Annotated[str, AfterValidator(_known_strategy)] = Field(
        "sequential",
        description="a module of launcher.strategies",
        json_schema_extra=lambda schema: schema.update(enum=[*strategy_names()]),
    )
    stages: Ranks = 1
    schedule: Literal["naive", "gpipe", "ring"] = "ring"
    tensor: Ranks = 1
    replicas: Ranks = 1
    options: dict[str, Any] = Field(
        default_factory=dict, description="what one strategy alone knows"
    )


class BatchSpec(Section):
    """What is in flight at once."""

    groups: Count | Auto = "auto"
    slots: Count | Auto = "auto"
    prefill_chunk: Count | Auto = "auto"
    max_length: Count | Auto = "auto"


class InputSpec(Section):
    """The prompts."""

    path: str | list[str] = Field(
        description="a file, a dataset's folder, a list of them, or a glob; relative to the spec"
    )
    format: Literal["auto", "jsonl", "openai", "parquet", "arrow", "text"] = "auto"
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="of Parquet and Arrow files: row key to column, such as prompt: question",
    )
    template: str = Field("auto", description="chat template: auto, none, or a file")


class GenerationSpec(Section):
    """Sampling settings; a row of the input may override any of them."""

    max_new_tokens: Count = 256
    temperature: float = Field(0.0, ge=0, le=100)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, le=2**31 - 1)
    seed: int = Field(0, ge=0, lt=2**63)
    stop: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list, max_length=64)


class OutputSpec(Section):
    """Where runs go, and the form of the results."""

    dir: str = Field(
        "runs", description="parent of run directories, relative to the working directory"
    )
    format: Literal["jsonl", "openai", "parquet"] = "jsonl"


class ResourcesSpec(Section):
    """The machines of one world."""

    nodes: Ranks = 1
    gpus_per_node: Annotated[int, Field(ge=0, le=1024)] | Auto = "auto"
    device: Literal["auto", "cuda", "cpu"] = "auto"
    gpu: str = Field("auto", description="the profile that plan uses where the GPU is not here")


class LimitsSpec(Section):
    """Deadlines, after which a rank is taken to be lost."""

    join: Seconds = 300.0
    load: Seconds = 3600.0
    step: Seconds = 60.0
    stall: Seconds = 120.0
    drain: Seconds = 60.0
    total: Seconds | None = Field(
        None, description="of all attempts of a world together; then it is drained, for good"
    )


class NotifySpec(Section):
    """Whom to tell when a run ends; mail is Slurm's own (slurm.mail_type)."""

    command: str | None = Field(
        None,
        min_length=1,
        description="shell line, run where the run ended, with LAUNCHER_RUN, LAUNCHER_NAME, LAUNCHER_STATE, "
        "LAUNCHER_ROWS, LAUNCHER_FAILED_ROWS and LAUNCHER_MESSAGE in its environment",
    )
    on: list[Literal["complete", "failed", "stopped"]] = Field(
        ["complete", "failed"],
        description="complete: every row is accounted for; failed: an attempt failed; stopped: cancelled, or out of restarts",
    )


class JobSpec(Section):
    """One job spec, as written: paths and the site profile are resolved by job/load.py."""

    name: Annotated[str, Matching(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,64}", _NAME)]
    task: Literal["generate", "score", "script"] = "generate"
    model: ModelSpec
    parallel: ParallelSpec = ParallelSpec()
    batch: BatchSpec = BatchSpec()
    input: InputSpec
    generation: GenerationSpec = GenerationSpec()
    script: ScriptSpec | None = None
    accelerate: dict[str, Any] = Field(
        default_factory=dict, description="of a script: options of the installed accelerate"
    )
    output: OutputSpec = OutputSpec()
    resources: ResourcesSpec = ResourcesSpec()
    slurm: SlurmSpec = SlurmSpec()
    limits: LimitsSpec = LimitsSpec()
    notify: NotifySpec = NotifySpec()

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, data: Any) -> Any:
        return tasks.filled(data) if isinstance(data, dict) else data

    def with_model(self, path: str, revision: str | None) -> JobSpec:
        """This spec with its model at ``path``, at that revision."""
        found = self.model.model_copy(update={"path": path, "revision": revision})
        return self.model_copy(update={"model": found})
