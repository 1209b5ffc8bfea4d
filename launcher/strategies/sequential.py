"""Strategy `sequential`: whole layers one after the other over one rank's own GPUs, or on its CPU.

Devices take turns, as transformers does it with a `device_map`. A replica is one rank on one node;
replicas share nothing but the ledger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from launcher.errors import UsageError
from launcher.job.section import Matching
from launcher.job.spec import JobSpec, Section
from launcher.measure.spans import Recorder
from launcher.plan import advice
from launcher.plan.checkpoint import Checkpoint
from launcher.plan.course import Replayed
from launcher.plan.hardware import room
from launcher.plan.machines import Machines
from launcher.plan.mapped import MappedReplica, Split
from launcher.plan.memory import Share
from launcher.plan.placement import Device, DeviceMap, unsplit_modules
from launcher.plan.plan import DevicePlan, Placement, Plan, Predicted
from launcher.plan.shapes import family
from launcher.plan.sizes import Bytes
from launcher.plan.subject import Subject
from launcher.plan.turns import in_turns, turns_of
from launcher.records import Demand

if TYPE_CHECKING:
    from launcher.model.gang import Gang
    from launcher.model.step import StepModel


def _device(value: Any) -> Any:
    """0, "0" and "cuda:0" are the rank's first GPU."""
    text = str(value).removeprefix("cuda:")
    return int(text) if text.isdigit() else value


def _known(device: Device) -> Device:
    if device not in ("cpu", "disk") and (isinstance(device, str) or device < 0):
        raise ValueError("should be a GPU's number, cpu or disk")
    return device


Place = Annotated[int | str, BeforeValidator(_device), AfterValidator(_known)]


class Options(Section):
    """What `parallel.options` may hold under `sequential`."""

    device_map: Literal["sequential", "auto", "balanced", "balanced_low_0"] | dict[str, Place] = (
        Field("sequential", description="a rule, or module names with their devices")
    )
    max_memory: dict[Place, Bytes] | None = Field(
        None, description="weights per GPU of a replica; cpu or disk in it allow spilling"
    )
    no_split: list[str] = Field(
        default_factory=list, description="classes of modules that stay whole; layers always do"
    )
    offload_dir: Annotated[str, Matching(r"/.*", "an absolute path")] | None = Field(
        None, description="of the node: where fused experts that go to disk are written anew"
    )


def place(checkpoint: Checkpoint, machines: Machines, spec: JobSpec, demand: Demand) -> Plan:
    """Where each layer of each replica goes, and the largest batch that fits beside it.

    Raises UsageError for a spec that asks for another strategy or for devices that are not there.
    """
    options = Options.model_validate(spec.parallel.options)
    subject = Subject(checkpoint, machines, spec, demand)
    homes = _homes(spec, machines)
    replica = _replica(subject, options)
    fitted = replica.fit(subject.largest_batch(), spec.batch)
    batch = fitted.batch
    shares = [s for s in replica.shares(batch).values() if s.weights]
    notes = subject.notes(batch)
    if any(share.device == "cpu" for share in shares):
        notes.append(machines.host_note)
    if fitted.fits:
        notes += advice.waste(replica, machines, shares, batch, len(homes))
    else:
        notes += advice.why_not(replica, batch, fitted.slots)
    notes += advice.slow_dtype(machines, subject.dtype)
    device_map = replica.device_map(batch)
    if "disk" in device_map.values():
        _check_offload(checkpoint, options, machines)
    if family(checkpoint.config) is None and len(device_map) > 1:
        notes.append(
            "the modules' names are guessed from the checkpoint's: this model_type is new here"
        )
    turns = sum(isinstance(share.device, int) for share in shares)
    replayed = in_turns(subject, shares, batch)
    return Plan(
        fits=fitted.fits,
        reasons=[note for note in notes if note],
        strategy="sequential",
        schedule="naive" if turns > 1 else None,
        world_size=len(homes),
        ranks_per_node=len(homes) // machines.nodes,
        devices=[row for home in homes for row in _rows(subject, replica, shares, home, replayed)],
        placements=_placements(homes, device_map),
        batch=batch,
        predicted=_predicted(subject, replayed, max(1, turns)),
        **subject.facts(),
    )


def load(
    placement: Placement, plan: Plan, spec: JobSpec, recorder: Recorder, gang: Gang
) -> StepModel:
    """This rank's copy of the model, where the plan says; it works alone, so it needs no ``gang``."""
    from launcher.model import direct
    from launcher.model.local import LocalStepModel, RunnerStepModel
    from launcher.model.packed import pack_linears
    from launcher.model.runner import StageRunner
    from launcher.model.turns import TurnTimer
    from launcher.model.weights import Loading

    offload = Options.model_validate(spec.parallel.options).offload_dir
    if offload is not None:  # one folder per rank: replicas of a node write at the same time
        offload = str(Path(offload) / f"rank-{placement.rank:04d}")
    model = direct.load(spec.model, Loading(plan.dtype, placement.device_map, offload))
    if plan.device == "cpu" and placement.device_map is None:
        pack_linears(model)
    stages = _stages(plan, placement)
    if len(stages) <= 1 and "disk" not in stages:
        return LocalStepModel(model, plan.batch, recorder)
    return RunnerStepModel(StageRunner(model, plan.batch), TurnTimer(model, stages, recorder))


def _stages(plan: Plan, placement: Placement) -> dict[Device, int]:
    """The stage that each place of the device map computes as: spilled layers do on the first GPU, or the CPU."""
    stage_of = {row.device: row.stage for row in plan.devices if row.rank == placement.rank}
    places = set((placement.device_map or {}).values())
    found: dict[Device, int] = {
        place: stage_of[f"cuda:{placement.gpus[place]}"]
        for place in places
        if isinstance(place, int)
    }
    main = found[min(found)] if found else stage_of.get("cpu", 0)
    return {place: found.get(place, main) for place in places}


@dataclass(frozen=True)
class _Home:
    """A replica's rank: its node, and which of the node's GPUs are its own."""

    rank: int
    node: int
    gpus: tuple[int, ...]


def _homes(spec: JobSpec, machines: Machines) -> list[_Home]:
    parallel = spec.parallel
    for name, value, plain in (
        ("stages", parallel.stages, 1),
        ("tensor", parallel.tensor, 1),
        ("schedule", "ring" if parallel.schedule == "naive" else parallel.schedule, "ring"),
    ):
        if value != plain:
            other = "tensor" if name == "tensor" else "pipeline"
            raise UsageError(
                f"strategy sequential has no {name}: layers are spread over one rank's GPUs",
                where=f"parallel.{name}",
                fix=f"take it out, or set parallel.strategy to {other}",
            )
    each, rest = divmod(parallel.replicas, machines.nodes)
    if rest:
        raise UsageError(
            f"{parallel.replicas} replicas can't be spread evenly over {machines.nodes} nodes",
            where="parallel.replicas",
            cause="under sequential a replica is one process on one node",
            fix="make parallel.replicas a multiple of resources.nodes",
        )
    own = machines.gpus_per_node // each
    if machines.device == "cuda" and not own:
        raise UsageError(
            f"{each} replicas per node can't share {machines.gpus_per_node} GPUs",
            where="parallel.replicas",
            fix=f"at most {machines.gpus_per_node * machines.nodes} replicas have a GPU each",
        )
    return [
        _Home(rank, rank // each, tuple(range(rank % each * own, (rank % each + 1) * own)))
        for rank in range(parallel.replicas)
    ]


def _replica(subject: Subject, options: Options) -> MappedReplica:
    machines, tree = subject.machines, subject.model.outline
    each = subject.spec.parallel.replicas // machines.nodes
    gpus = machines.gpus_per_node // each
    unsplit = unsplit_modules(tree, options.no_split, "parallel.options.no_split")
    _check_gpus(options, gpus)
    # The same spec plans on a CPU, where what it says of GPUs has no meaning.
    memory = {d: size for d, size in (options.max_memory or {}).items() if gpus or d == "cpu"}
    return MappedReplica(
        model=subject.model,
        split=Split(options.device_map, memory or None, tuple(unsplit)),
        gpus=gpus,
        gpu_bytes=machines.gpu.memory_bytes if machines.gpu else 0,
        cpu_bytes=machines.host_bytes // each,
    )


def _check_gpus(options: Options, gpus: int) -> None:
    """Raises UsageError where the options name a GPU that a replica does not have."""
    by_hand = options.device_map if isinstance(options.device_map, dict) else {}
    named = {
        "device_map": by_hand.values(),
        "max_memory": (options.max_memory or {}) if gpus else {},
    }
    for key, devices in named.items():
        beyond = sorted(d for d in devices if isinstance(d, int) and d >= gpus)
        if beyond:
            raise UsageError(
                f"GPU {beyond[0]} is named, but a replica has {gpus}, numbered from 0",
                where=f"parallel.options.{key}",
                fix="GPUs are counted within one replica; see resources.gpus_per_node",
            )


def _check_offload(checkpoint: Checkpoint, options: Options, machines: Machines) -> None:
    """Raises UsageError where the folder for weights on disk is needed and not given, or can't be written here."""
    where, fused = "parallel.options.offload_dir", any(".experts." in n for n in checkpoint.tensors)
    if fused and options.offload_dir is None:
        raise UsageError(
            "experts are fused while loading, so those on disk can't be read from the checkpoint",
            where=where,
            fix="set it to a folder on a disk of the node, or leave more layers in memory",
        )
    # A node of a cluster is asked when its ranks load.
    if machines.here and options.offload_dir is not None and not room(options.offload_dir):
        raise UsageError(
            f"nothing can be written to {options.offload_dir}, or there is no room",
            where=where,
            fix="set it to a folder on a disk that you may write to",
        )


def _rows(
    subject: Subject,
    replica: MappedReplica,
    shares: Sequence[Share],
    home: _Home,
    replayed: Replayed,
) -> list[DevicePlan]:
    """The devices of one replica in the order of their layers; GPUs that stay empty come last."""
    empty = [gpu for gpu in range(replica.gpus) if gpu not in {share.device for share in shares}]
    nothing = [Share(gpu, (), weights=0, kv=0, activations=0, reserve=0) for gpu in empty]
    turns = turns_of(shares, subject.model.dims.layers)
    return [
        DevicePlan(
            replica=home.rank,
            stage=stage,
            rank=home.rank,
            device=f"cuda:{home.gpus[s.device]}" if isinstance(s.device, int) else s.device,
            layers=(s.layers[0], s.layers[-1]) if s.layers else None,
            weights_bytes=s.weights,
            kv_bytes=s.kv,
            activation_bytes=s.activations,
            peak_bytes=s.peak,
            capacity_bytes=replica.capacity(s.device),
            **(replayed.of_turn(turns[s.device]) if s.device in turns else {}),
            **(subject.loading(s.weights) if s.device in turns else {}),
        )
        for stage, s in enumerate([*shares, *nothing])
    ]


def _placements(homes: Sequence[_Home], device_map: DeviceMap) -> list[Placement]:
    plain = set(device_map.values()) == {"cpu"}
    return [
        Placement(
            rank=home.rank,
            replica=home.rank,
            node=home.node,
            gpus=home.gpus,
            device_map=None if plain else device_map,
        )
        for home in homes
    ]


def _predicted(subject: Subject, replayed: Replayed, turns: int) -> Predicted:
    """Devices take turns, so K of them are busy 1/K of the time."""
    found = subject.predicted(replayed, bubble=(turns - 1) * replayed.utilization / turns)
    return found.model_copy(update={"utilization": (found.utilization or 0.0) / turns})
