"""Plan: what will happen, as data. Ranks load from it what `launcher plan` printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from launcher.disk import read_json
from launcher.errors import Damaged


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DevicePlan(Frozen):
    """One device's share of one replica. Sizes in bytes; ``layers`` is [first, last], None if it has none.
    ``utilization``, ``bubble``, ``transfer`` and ``weights`` (waiting for them) are predicted shares of its time;
    ``prefill_s`` and ``decode_s`` the seconds that it computes steps with and without a prompt in them; ``load_s`` and
    ``bytes_read`` those of loading. None is "not predicted"."""

    replica: int
    stage: int
    shard: int = 0
    rank: int
    device: str  # cuda:0 .. of its node, cpu, disk
    layers: tuple[int, int] | None
    weights_bytes: int
    kv_bytes: int
    activation_bytes: int
    peak_bytes: int
    capacity_bytes: int | None
    utilization: float | None = None
    bubble: float | None = None
    transfer: float | None = None
    weights: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    load_s: float | None = None
    bytes_read: float | None = None


class Streaming(Frozen):
    """What of a streamed model stays in memory. ``layers`` counts the first layers that do; the others, and the
    head unless ``head``, are read at every sweep into ``buffers`` buffers. The cache of the groups from
    ``groups`` on is kept in a file or in host memory, where it takes ``spilled_bytes``."""

    layers: int
    head: bool
    buffers: int
    groups: int
    spilled_bytes: int = 0


class Placement(Frozen):
    """What one rank loads. ``device_map`` maps module names to devices ("cpu", "disk", or an index among
    the rank's own GPUs); None where the strategy does not place by module. ``layers`` is [first, last] of a
    stage that is a rank of its own; of ``shards`` ranks that share the stage it is number ``shard``, unless
    one rank has them all.
    ``streaming`` is None where all weights are loaded at once."""

    rank: int
    replica: int
    node: int
    gpus: tuple[int, ...] = ()  # of its node, the rank's own
    device_map: dict[str, int | str] | None = None
    stage: int = 0
    layers: tuple[int, int] | None = None
    shard: int = 0
    shards: int = 1
    streaming: Streaming | None = None


class Batch(Frozen):
    """What is in flight per replica. ``max_length`` counts prompt and new tokens of a slot."""

    groups: int
    slots: int
    max_length: int
    prefill_chunk: int


class Predicted(Frozen):
    """What the run is expected to measure, ``tokens_per_s`` of a mean world of an array; None is "not predicted"."""

    tokens_per_s: float | None = None
    new_tokens: float | None = None  # if every row generates as much as it may
    wall_s: float | None = None
    load_s: float | None = None
    generate_s: float | None = None
    utilization: float | None = None
    bubble: float | None = None
    gpu_hours: float | None = None
    read_bytes_per_token: float | None = None  # of a model that is streamed


class Plan(Frozen):
    """All placements of one world, the batch, and what was concluded about them."""

    fits: bool
    reasons: list[str]  # why it does not fit, or what is wasteful
    task: str = "generate"
    strategy: str
    schedule: str | None = None
    device: Literal["cuda", "cpu"]
    dtype: str  # float32 | bfloat16 | float16: what the weights are loaded as
    rows: int = 0  # of the input, that all worlds share
    parameters: int
    weights_bytes: int
    kv_bytes_per_token: int
    world_size: int
    ranks_per_node: int
    nodes: int
    worlds: int = 1  # that share the run
    gpus_per_node: int = 0  # what is asked of Slurm; 0 on CPUs
    peak_flops: float | None = None  # one device's, per second, in this dtype; None where not known
    peak_bandwidth: float | None = None  # of one device's memory, bytes per second
    devices: list[DevicePlan]
    placements: list[Placement]
    batch: Batch
    predicted: Predicted = Predicted()
    rates: str = "assumed"  # where the figures are from that the times follow from
    candidates: list[dict[str, Any]] = Field(default_factory=list)
    script: str | None = None  # what sbatch gets
    accelerate: dict[str, Any] | None = None  # of task: script, what `accelerate launch` gets

    @classmethod
    def read(cls, path: Path) -> Plan:
        """The plan in a run's plan.json. Raises Damaged if that is none."""
        fix = f"put it back, or start the job again from {path.parent}/spec.yaml"
        try:
            data = read_json(path)
            return cls.model_validate(data)
        except Damaged as error:
            error.fix = fix
            raise
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            why = f"{place}: {first['msg']}" if place else first["msg"]
            raise Damaged(
                "there is no plan.json" if data is None else f"not a plan: {why}",
                where=str(path),
                cause="another version of the launcher made it, or somebody edited it",
                fix=fix,
            ) from None

    @property
    def replicas(self) -> int:
        """Copies of the model in one world."""
        return len({placement.replica for placement in self.placements})

    def ranks_of(self, replica: int) -> list[int]:
        """The ranks that hold ``replica``, in the order of its stages and of their shards. The first one runs
        the engine."""
        return [placement.rank for placement in self.placements if placement.replica == replica]
