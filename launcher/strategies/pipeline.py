"""Strategy `pipeline`: consecutive layers on ranks of their own, and several groups of sequences on their way through.

A replica is ``stages`` ranks, which may be on several nodes; each reads only its own layers. How many
groups are in flight, and when each goes on, is the schedule: naive, gpipe or ring.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from launcher.errors import UsageError
from launcher.job.spec import JobSpec, Section
from launcher.measure.spans import Recorder
from launcher.plan.advice import slow_dtype
from launcher.plan.checkpoint import Checkpoint
from launcher.plan.machines import Machines
from launcher.plan.plan import DevicePlan, Placement, Plan, Predicted
from launcher.plan.split import check_counts, spans
from launcher.plan.splittable import can_split
from launcher.plan.stage_advice import idle, why_no_stages
from launcher.plan.staged import Draft, Drafting
from launcher.plan.subject import Subject
from launcher.records import Demand

if TYPE_CHECKING:
    from launcher.model.gang import Gang
    from launcher.model.step import Server, StepModel

FASTER = 1.03  # where twice the groups leave fewer slots to each, they have to be worth it


class Options(Section):
    """What `parallel.options` may hold under `pipeline`."""

    layers: list[int] | None = Field(
        None, description="layers of each stage; without it, stages are balanced by cost"
    )


def place(checkpoint: Checkpoint, machines: Machines, spec: JobSpec, demand: Demand) -> Plan:
    """Which layers each rank holds, how many groups are in flight, and how busy the stages will be.

    Raises UsageError for a model that can't be cut, or more stages than layers, ranks or GPUs allow.
    """
    options = Options.model_validate(spec.parallel.options)
    _check(checkpoint, spec, options)
    subject = Subject(checkpoint, machines, spec, demand)
    homes = _homes(spec, machines)
    draft, drafting = _best(subject, homes, options)
    batch = draft.fitted.batch
    notes = subject.notes(batch)
    if machines.device == "cpu":
        notes.append(machines.host_note)
    if draft.fitted.fits:
        notes += idle(draft, subject, len(homes) // machines.nodes)
    else:
        notes += why_no_stages(draft, drafting)
    notes += slow_dtype(machines, subject.dtype)
    return Plan(
        fits=draft.fitted.fits,
        reasons=[note for note in notes if note],
        strategy="pipeline",
        schedule=spec.parallel.schedule,
        world_size=len(homes),
        ranks_per_node=len(homes) // machines.nodes,
        devices=_rows(homes, draft),
        placements=_placements(homes, draft),
        batch=batch,
        predicted=Predicted(utilization=draft.simulated.utilization, bubble=draft.simulated.bubble),
        **subject.facts(),
    )


def load(
    placement: Placement, plan: Plan, spec: JobSpec, recorder: Recorder, gang: Gang
) -> StepModel | Server:
    """This rank's stage: on the first rank of a replica a StepModel, on the others a Server."""
    from launcher.model.local import LocalStepModel
    from launcher.model.message import Form
    from launcher.model.packed import pack_linears
    from launcher.model.pipeline import Chain, PipelineStepModel, ServingStage
    from launcher.model.runner import StageRunner
    from launcher.model.stage import load_stage

    layers, ranks = placement.layers, plan.ranks_of(placement.replica)
    assert layers is not None
    total = 1 + max(device.layers[1] for device in plan.devices if device.layers)
    model = load_stage(spec.model, plan.dtype, layers, total, 0 if placement.gpus else "cpu")
    if not placement.gpus:
        pack_linears(model)
    if len(ranks) == 1:
        return LocalStepModel(model, plan.batch, recorder)
    form = Form(model.config.get_text_config().hidden_size, model.dtype)
    chain = Chain(gang, ranks, plan.batch, form)
    runner = StageRunner(model, plan.batch, chain.first, chain.last)
    return (PipelineStepModel if chain.first else ServingStage)(runner, chain, recorder)


@dataclass(frozen=True)
class _Home:
    """One stage's rank, and where it is; ``gpu`` counts the node's, None on a CPU."""

    rank: int
    replica: int
    stage: int
    node: int
    gpu: int | None


def _check(checkpoint: Checkpoint, spec: JobSpec, options: Options) -> None:
    parallel, layers = spec.parallel, checkpoint.dims.layers
    if parallel.tensor != 1:
        raise UsageError(
            "strategy pipeline can't split a stage's tensors in this version",
            where="parallel.tensor",
            fix="take it out, or set parallel.strategy to tensor",
        )
    if reason := can_split(checkpoint.config, checkpoint.tensors):
        raise UsageError(
            f"a {checkpoint.config.get('model_type')} can't be cut into stages: {reason}",
            where="parallel.strategy",
            fix="set parallel.strategy to sequential",
        )
    if parallel.stages > layers:
        raise UsageError(
            f"{parallel.stages} stages can't share {layers} layers",
            where="parallel.stages",
            fix=f"at most {layers} stages have a layer each; parallel.replicas makes copies",
        )
    if options.layers is not None:
        check_counts(options.layers, layers, parallel.stages, "parallel.options.layers")


def _homes(spec: JobSpec, machines: Machines) -> list[_Home]:
    """Rank by rank, one node after the other; a replica is within one node, or on whole nodes."""
    stages, replicas, nodes = spec.parallel.stages, spec.parallel.replicas, machines.nodes
    each, rest = divmod(stages * replicas, nodes)
    shape = f"{replicas} x {stages} stages" if replicas > 1 else f"{stages} stages"
    if rest or (each % stages and stages % each):
        raise UsageError(
            f"{shape} can't be laid evenly over {nodes} nodes",
            where="parallel.stages",
            cause="every node has as many ranks, and a replica is within a node or on whole nodes",
            fix="make parallel.replicas a multiple of resources.nodes, or parallel.stages one",
        )
    if machines.device == "cuda" and each > machines.gpus_per_node:
        raise UsageError(
            f"{shape} are {each} ranks per node, which has {machines.gpus_per_node} GPUs",
            where="parallel.stages",
            cause="under pipeline every stage is a process with a GPU of its own",
            fix=f"at most {machines.gpus_per_node * nodes} stages in all, over all replicas",
        )
    return [
        _Home(
            rank=rank,
            replica=rank // stages,
            stage=rank % stages,
            node=rank // each,
            gpu=rank % each if machines.device == "cuda" else None,
        )
        for rank in range(stages * replicas)
    ]


def _best(subject: Subject, homes: list[_Home], options: Options) -> tuple[Draft, Drafting]:
    """The draft with as many groups as the spec says, or else as keep the stages busy."""
    machines, parallel = subject.machines, subject.spec.parallel
    nodes = [home.node for home in homes[: parallel.stages]]
    drafting = Drafting(
        subject=subject,
        rank_bytes=machines.gpu.memory_bytes
        if machines.gpu
        else machines.host_bytes * machines.nodes // len(homes),
        far=tuple(here != there for here, there in zip(nodes, [*nodes[1:], nodes[0]], strict=True)),
        layers=tuple(options.layers) if options.layers else None,
    )
    best, *others = map(drafting.draft, _groups(subject))
    for other in others:
        faster = other.tokens_per_s > FASTER * best.tokens_per_s
        if other.fitted.fits and (faster or other.fitted.batch.slots >= best.fitted.batch.slots):
            best = other
    return best, drafting


def _groups(subject: Subject) -> list[int]:
    """The numbers of groups to choose from. In a ring more groups than stages hide the links between them, and
    even out that a prefill step takes longer than a decode step."""
    parallel, asked = subject.spec.parallel, subject.spec.batch.groups
    stages = parallel.stages
    if parallel.schedule == "naive":
        return [1]
    if asked != "auto":
        return [asked]
    few_rows = subject.demand.rows < 2 * stages * parallel.replicas
    return (
        [stages]
        if parallel.schedule == "gpipe" or stages == 1 or few_rows
        else [stages, 2 * stages]
    )


def _rows(homes: list[_Home], draft: Draft) -> list[DevicePlan]:
    shares = draft.replica.shares(draft.fitted.batch)
    return [
        DevicePlan(
            replica=home.replica,
            stage=home.stage,
            rank=home.rank,
            device="cpu" if home.gpu is None else f"cuda:{home.gpu}",
            layers=layers,
            weights_bytes=share.weights,
            kv_bytes=share.kv,
            activation_bytes=share.activations,
            peak_bytes=share.peak,
            capacity_bytes=draft.replica.rank_bytes,
            utilization=simulated.busy,
            bubble=simulated.bubble,
        )
        for home in homes
        for layers in [spans(draft.replica.counts)[home.stage]]
        for share, simulated in [(shares[home.stage], draft.simulated.stages[home.stage])]
    ]


def _placements(homes: list[_Home], draft: Draft) -> list[Placement]:
    layers = spans(draft.replica.counts)
    return [
        Placement(
            rank=home.rank,
            replica=home.replica,
            node=home.node,
            gpus=() if home.gpu is None else (home.gpu,),
            stage=home.stage,
            layers=layers[home.stage],
        )
        for home in homes
    ]
