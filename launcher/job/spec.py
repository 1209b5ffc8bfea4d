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
_PROJECT = r"[A-Za-z0-9._-]{1,128}"
_PROJECT_SAYS = "1 to 128 letters (a-z), digits, dots, dashes and underscores"
_NAME = "1 to 64 letters (a-z), digits, dots, dashes and underscores"


class ModelSpec(Section):
    """Which model, and in what form its weights are held."""

    path: str = Field(min_length=1, description="a directory (relative to the spec) or a hub id")
    revision: Annotated[str, Matching(_REVISION, "a branch, tag or commit")] | None = Field(
        None, description="of a hub id: branch, tag or commit; the commit is recorded"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="what weights are computed with; auto: as the checkpoint says"
    )
    attention: Literal["eager", "sdpa", "flash_attention_2"] = Field(
        "sdpa",
        description="how layers attend; flash_attention_2 takes the package flash-attn, CUDA GPUs and 16 bits",
    )
    trust_remote_code: bool = Field(
        False, description="run code that comes with the model; of a hub id only at a commit"
    )


class ParallelSpec(Section):
    """How the model is split and how often it is copied."""

    strategy: Annotated[str, AfterValidator(_known_strategy)] = Field(
        "sequential",
        description="a module of launcher.strategies; auto: the fastest that fits",
        json_schema_extra=lambda schema: schema.update(enum=[*strategy_names()]),
    )
    stages: Ranks = Field(1, description="of a pipeline: pieces that the layers are cut into")
    schedule: Literal["naive", "gpipe", "ring"] = Field(
        "ring",
        description="of a pipeline: one group at a time, all groups step by step, or each as soon as its token is drawn",
    )
    tensor: Ranks = Field(1, description="ranks that share every layer of a stage")
    replicas: Ranks = Field(1, description="copies of the model in one world; they share the rows")
    options: dict[str, Any] = Field(
        default_factory=dict, description="what one strategy alone knows, as below"
    )


class BatchSpec(Section):
    """What is in flight at once."""

    groups: Count | Auto = Field("auto", description="micro-batches in flight per replica")
    slots: Count | Auto = Field("auto", description="sequences per group; auto: as many as fit")
    prefill_chunk: Count | Auto = Field("auto", description="tokens of prompts per step")
    max_length: Count | Auto = Field(
        "auto", description="tokens that a slot has room for; auto: the longest row's"
    )


class InputSpec(Section):
    """The prompts."""

    path: str | list[str] = Field(
        description="a file, a dataset's folder, a list of them, or a glob; relative to the spec"
    )
    format: Literal["auto", "jsonl", "openai", "parquet", "arrow", "text"] = Field(
        "auto", description="auto: by extension and first row"
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="of Parquet and Arrow files: row key to column, such as prompt: question",
    )
    template: str = Field("auto", description="chat template: auto, none, or a file")


MOST_ANSWERS = 128  # to a row, as OpenAI has it
MOST_BIASED = 1024  # tokens of a row's logit_bias
# Strict: true is no bias of 1.
Bias = Annotated[float, Field(strict=True, ge=-100, le=100)]


class GenerationSpec(Section):
    """Sampling settings; a row of the input may override any of them."""

    max_new_tokens: Count = Field(256, description="after which a row ends with `length`")
    temperature: float = Field(0.0, ge=0, le=100, description="0: the likeliest token each time")
    top_p: float = Field(
        1.0, gt=0, le=1, description="draw from the likeliest tokens of this probability together"
    )
    top_k: int = Field(0, ge=0, le=2**31 - 1, description="draw from so many tokens; 0: from all")
    presence_penalty: float = Field(
        0.0, ge=-2, le=2, description="taken off the logit of every token that the row has drawn"
    )
    frequency_penalty: float = Field(
        0.0, ge=-2, le=2, description="the same, once for each time that it was drawn"
    )
    logit_bias: dict[Annotated[int, Field(ge=0, lt=2**31)], Bias] = Field(
        default_factory=dict,
        max_length=MOST_BIASED,
        description="added to logits: token number to bias, from -100 (never) to 100 (always)",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="rows without one have this plus their index")
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=list, max_length=64, description="texts that end a row; they are left out"
    )
    n: int = Field(
        1,
        ge=1,
        le=MOST_ANSWERS,
        description="answers to a row, each drawn with a seed of its own: in `choices` of its result where there are several",
    )


class OutputSpec(Section):
    """Where runs go, and the form of the results."""

    dir: str = Field(
        "runs", description="parent of run directories, relative to the working directory"
    )
    format: Literal["jsonl", "openai", "parquet"] = Field(
        "jsonl", description="of the results; parquet is written beside jsonl"
    )


class ResourcesSpec(Section):
    """The machines of one world."""

    nodes: Ranks = Field(1, description="machines of one world")
    gpus_per_node: Annotated[int, Field(ge=0, le=1024)] | Auto = Field(
        "auto", description="auto: what sbatch's own options ask for, or what is here"
    )
    device: Literal["auto", "cuda", "cpu"] = Field(
        "auto", description="auto: cuda where there are GPUs; on cpu every rank is a process"
    )
    gpu: str = Field(
        "auto", description="the profile that plan uses where the GPU is not here, such as H100"
    )


class LimitsSpec(Section):
    """Deadlines, after which a rank is taken to be lost: seconds, or a number with s, m, h or d behind it."""

    join: Seconds = Field(300.0, description="until every rank is there")
    load: Seconds = Field(3600.0, description="until a rank has its weights")
    step: Seconds = Field(60.0, description="for one step of the model, or of a script")
    stall: Seconds = Field(120.0, description="without a sign of life")
    drain: Seconds = Field(60.0, description="to stop when asked; then ranks are killed")
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


class WandbSpec(Section):
    """Weights & Biases, told of the run as it goes (the extra `wandb`); docs/watching.md says what."""

    project: Annotated[str, Matching(_PROJECT, _PROJECT_SAYS)] | None = Field(
        None, description="where the run appears; without one nothing is told"
    )
    entity: Annotated[str, Matching(_PROJECT, _PROJECT_SAYS)] | None = Field(
        None, description="user or team; without one your default"
    )
    mode: Literal["online", "offline"] = Field(
        "online",
        description="offline: kept in the run directory for `wandb sync`, where nodes have no network",
    )


class JobSpec(Section):
    """One job spec, as written: paths and the site profile are resolved by job/load.py."""

    name: Annotated[str, Matching(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,64}", _NAME)] = Field(
        description="runs are called by it: NAME-0001, NAME-0002 ..."
    )
    task: Literal["generate", "score", "script"] = Field(
        "generate", description="new text, log-probabilities of given texts, or your own script"
    )
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
    wandb: WandbSpec = WandbSpec()

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, data: Any) -> Any:
        return tasks.filled(data) if isinstance(data, dict) else data

    def with_model(self, path: str, revision: str | None) -> JobSpec:
        """This spec with its model at ``path``, at that revision."""
        found = self.model.model_copy(update={"path": path, "revision": revision})
        return self.model_copy(update={"model": found})
