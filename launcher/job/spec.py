"""JobSpec: everything a user can say in a job spec, with its types, defaults and limits.

The field names are the YAML names. The JSON Schema, the reference page and the "did you mean" hints
are derived from these classes, so a field is stated once.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Auto = Literal["auto"]
Count = Annotated[int, Field(ge=1)]


def _seconds(value: Any) -> Any:
    """``300``, ``300s``, ``5m``, ``2h`` or ``1d`` as seconds."""
    if isinstance(value, str):
        number, unit = value[:-1], value[-1:]
        if unit in "smhd" and unit and number.replace(".", "", 1).isdigit():
            return float(number) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[unit]
        raise ValueError("a duration is a number with s, m, h or d behind it, such as 300s")
    return value


Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]


class Section(BaseModel):
    """A mapping in the spec; a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSpec(Section):
    """Which model, and in what form its weights are held."""

    path: str = Field(min_length=1, description="a directory (relative to the spec) or a hub id")
    revision: str | None = Field(
        None, description="of a hub id: branch, tag or commit; the commit is recorded"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attention: Literal["eager", "sdpa", "flash_attention_2"] = "sdpa"
    trust_remote_code: bool = False


class ParallelSpec(Section):
    """How the model is split and how often it is copied."""

    strategy: str = Field("sequential", description="a module of launcher.strategies")
    stages: Count = 1
    schedule: Literal["naive", "gpipe", "ring"] = "ring"
    tensor: Count = 1
    replicas: Count = 1
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
        description="a file, a list of files, or a glob; relative to the spec"
    )
    format: Literal["auto", "jsonl", "openai", "parquet", "text"] = "auto"
    template: str = Field("auto", description="chat template: auto, none, or a file")


class GenerationSpec(Section):
    """Sampling settings; a row of the input may override any of them."""

    max_new_tokens: Count = 256
    temperature: float = Field(0.0, ge=0, le=100)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    seed: int = Field(0, ge=0, lt=2**63)
    stop: list[str] = Field(default_factory=list, max_length=64)


class OutputSpec(Section):
    """Where runs go, and the form of the results."""

    dir: str = Field(
        "runs", description="parent of run directories, relative to the working directory"
    )
    format: Literal["jsonl", "openai", "parquet"] = "jsonl"


class ResourcesSpec(Section):
    """The machines of one world."""

    nodes: Count = 1
    gpus_per_node: Annotated[int, Field(ge=0)] | Auto = "auto"
    device: Literal["auto", "cuda", "cpu"] = "auto"
    gpu: str = Field("auto", description="the profile that plan uses where the GPU is not here")


class LimitsSpec(Section):
    """Deadlines, after which a rank is taken to be lost."""

    join: Seconds = 300.0
    step: Seconds = 60.0
    stall: Seconds = 120.0
    drain: Seconds = 60.0


class JobSpec(Section):
    """One job spec. ``slurm`` holds sbatch's own names; job/site.py checks and fills them."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    task: Literal["generate", "score", "script"] = "generate"
    model: ModelSpec
    parallel: ParallelSpec = ParallelSpec()
    batch: BatchSpec = BatchSpec()
    input: InputSpec
    generation: GenerationSpec = GenerationSpec()
    output: OutputSpec = OutputSpec()
    resources: ResourcesSpec = ResourcesSpec()
    slurm: dict[str, Any] = Field(default_factory=dict)
    limits: LimitsSpec = LimitsSpec()
