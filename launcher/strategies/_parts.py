"""What `pipeline` and `tensor` have in common: replicas of stages of shards, one rank each.

With one shard per stage it is a pipeline, with one stage tensor parallelism, and the products are no other code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from launcher.errors import UsageError
from launcher.job.spec import JobSpec
from launcher.measure.spans import Recorder
from launcher.plan.advice import slow_dtype
from launcher.plan.checkpoint import Checkpoint
from launcher.plan.course import Replayed
from launcher.plan.homes import Home, homes
from launcher.plan.plan import DevicePlan, Placement, Plan
from launcher.plan.shards import check_shards
from launcher.plan.split import spans
from launcher.plan.splittable import can_split
from launcher.plan.stage_advice import idle, why_no_stages
from launcher.plan.staged import Draft, Drafting
from launcher.plan.subject import Subject

if TYPE_CHECKING:
    from launcher.model.gang import Gang
    from launcher.model.step import Server, StepModel

SHORTEST_PART = {"cuda": 128, "cpu": 16}  # tokens of a prompt's part
AS_FAST = 0.99  # of the fastest: closer than predictions are
FASTER = 1.03  # where twice the groups leave fewer slots to each, they have to be worth it


def place_parts(subject: Subject, layers: Sequence[int] | None = None) -> Plan:
    """Which layers each rank holds a shard of, how many groups are in flight, and how busy the stages will be.
    ``layers`` are counts by hand.

    Raises UsageError for a model that can't be cut, or more parts than layers, ranks or GPUs allow.
    """
    machines, spec = subject.machines, subject.spec
    _check(subject.checkpoint, spec)
    all_homes = homes(spec.parallel, machines)
    draft, drafting = _best(subject, all_homes, layers)
    draft, replayed = _fed(draft, drafting)
    batch = draft.fitted.batch
    bubbles = replayed.bubbles()
    notes = subject.notes(batch)
    if machines.device == "cpu":
        notes.append(machines.host_note)
    if draft.fitted.fits:
        notes += idle(draft, subject, len(all_homes) // machines.nodes)
    else:
        notes += why_no_stages(draft, drafting)
    notes += slow_dtype(machines, subject.dtype)
    return Plan(
        fits=draft.fitted.fits,
        reasons=[note for note in notes if note],
        strategy=spec.parallel.strategy,
        schedule=spec.parallel.schedule if spec.parallel.strategy == "pipeline" else None,
        world_size=len(all_homes),
        ranks_per_node=len(all_homes) // machines.nodes,
        devices=_rows(subject, all_homes, draft, replayed),
        placements=_placements(all_homes, draft),
        batch=batch,
        predicted=subject.predicted(replayed, sum(bubbles) / len(bubbles)),
        **subject.facts(),
    )


def load_part(
    placement: Placement, plan: Plan, spec: JobSpec, recorder: Recorder, gang: Gang
) -> StepModel | Server:
    """This rank's part: on the first rank of a replica a StepModel, on the others a Server."""
    from launcher.model.group import TensorGroup
    from launcher.model.local import LocalStepModel
    from launcher.model.message import Form
    from launcher.model.packed import pack_linears
    from launcher.model.pipeline import Chain, PipelineStepModel, ServingStage
    from launcher.model.runner import StageRunner
    from launcher.model.sharding import Sharding
    from launcher.model.stage import load_stage

    assert placement.layers is not None
    total = 1 + max(device.layers[1] for device in plan.devices if device.layers)
    device = 0 if placement.gpus else "cpu"
    group = TensorGroup.join(gang, placement.shards, plan.device) if placement.shards > 1 else None
    sharding = Sharding(group) if group else None
    model = load_stage(spec.model, plan.dtype, placement.layers, total, device, sharding)
    if not placement.gpus:
        pack_linears(model)
    ranks = plan.ranks_of(placement.replica)
    if len(ranks) == 1:
        return LocalStepModel(model, plan.batch, recorder)
    form = Form(model.config.get_text_config().hidden_size, model.dtype)
    chain = Chain(gang, ranks, plan.batch, form, group)
    runner = StageRunner(model, plan.batch, chain.first, chain.last)
    leads = gang.rank == ranks[0]
    return (PipelineStepModel if leads else ServingStage)(runner, chain, recorder)


def _check(checkpoint: Checkpoint, spec: JobSpec) -> None:
    parallel, layers = spec.parallel, checkpoint.dims.layers
    check_shards(checkpoint, parallel.tensor)
    reason = can_split(checkpoint.config, checkpoint.tensors)
    if reason and parallel.strategy == "pipeline":
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


def _best(
    subject: Subject, homes: list[Home], layers: Sequence[int] | None
) -> tuple[Draft, Drafting]:
    """The draft with as many groups as the spec says, or else as keep the stages busy."""
    machines, parallel = subject.machines, subject.spec.parallel
    replica = homes[: parallel.stages * parallel.tensor]
    nodes = [home.node for home in replica[:: parallel.tensor]]
    drafting = Drafting(
        subject=subject,
        rank_bytes=machines.gpu.memory_bytes
        if machines.gpu
        else machines.host_bytes * machines.nodes // len(homes),
        far=tuple(here != there for here, there in zip(nodes, [*nodes[1:], nodes[0]], strict=True)),
        torn=len({home.node for home in replica[: parallel.tensor]}) > 1,
        layers=tuple(layers) if layers else None,
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
    few_rows = subject.demand.sequences < 2 * stages * parallel.replicas
    return (
        [stages]
        if parallel.schedule == "gpipe" or stages == 1 or few_rows
        else [stages, 2 * stages]
    )


def _fed(draft: Draft, drafting: Drafting) -> tuple[Draft, Replayed]:
    """``draft`` with prompts fed in the shortest parts that cost nothing, and its work played through: a long step
    keeps the stages behind it waiting, short ones read the weights more often."""
    fitted, taking_turns = draft.fitted, draft.fitted.batch.groups > 1 < len(draft.replica.counts)
    found = [(draft, drafting.replayed(draft))]
    free = taking_turns and drafting.subject.spec.batch.prefill_chunk == "auto"
    chunk = fitted.batch.prefill_chunk // 2 if free else 0
    while chunk > max(SHORTEST_PART[drafting.subject.machines.device] - 1, fitted.batch.slots):
        batch = fitted.batch.model_copy(update={"prefill_chunk": chunk})
        other = replace(draft, fitted=replace(fitted, batch=batch))
        found.append((other, drafting.replayed(other)))
        chunk //= 2
    least = AS_FAST * max(replayed.tokens_per_s for _, replayed in found)
    return next(each for each in reversed(found) if each[1].tokens_per_s >= least)


def _rows(
    subject: Subject, homes: list[Home], draft: Draft, replayed: Replayed
) -> list[DevicePlan]:
    shares = draft.replica.shares(draft.fitted.batch)
    return [
        DevicePlan(
            replica=home.replica,
            stage=home.stage,
            shard=home.shard,
            rank=home.rank,
            device="cpu" if home.gpu is None else f"cuda:{home.gpu}",
            layers=layers,
            weights_bytes=share.weights,
            kv_bytes=share.kv,
            activation_bytes=share.activations,
            peak_bytes=share.peak,
            capacity_bytes=draft.replica.rank_bytes,
            **replayed.of_stage(home.stage),
            **subject.loading(share.weights),
        )
        for home in homes
        for layers in [spans(draft.replica.counts)[home.stage]]
        for share in [shares[home.stage]]
    ]


def _placements(homes: list[Home], draft: Draft) -> list[Placement]:
    layers = spans(draft.replica.counts)
    shards = 1 + max(home.shard for home in homes)
    return [
        Placement(
            rank=home.rank,
            replica=home.replica,
            node=home.node,
            gpus=() if home.gpu is None else (home.gpu,),
            stage=home.stage,
            shard=home.shard,
            layers=layers[home.stage],
            shards=shards,
        )
        for home in homes
    ]
