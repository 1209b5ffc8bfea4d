"""Strategy `streamed`: a model larger than memory, read layer by layer from its checkpoint at every sweep.

A replica is one rank, which holds to the memory that it is given. A sweep over the weights serves all of its
groups, so a large batch makes it worth its reading; what memory is left over keeps layers.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

from launcher.errors import UsageError
from launcher.job.section import Matching
from launcher.job.spec import JobSpec, Section
from launcher.measure.spans import Recorder
from launcher.plan.advice import enough_gpus, unused
from launcher.plan.budget import BUFFERS, FREE_SHARE, HOST_SHARE, Budget
from launcher.plan.checkpoint import Checkpoint
from launcher.plan.course import Replayed
from launcher.plan.hardware import in_memory, room
from launcher.plan.homes import Home, homes
from launcher.plan.kept import not_streamed
from launcher.plan.machines import Machines
from launcher.plan.plan import DevicePlan, Placement, Plan, Predicted
from launcher.plan.sizes import Bytes, gib
from launcher.plan.splittable import can_split
from launcher.plan.streaming import Draft
from launcher.plan.subject import Subject
from launcher.records import Demand

if TYPE_CHECKING:
    from launcher.model.gang import Gang
    from launcher.model.step import StepModel


LEAST = 2**20  # bytes of memory; who says less forgot a unit


def _sized(memory: int) -> int:
    if memory < LEAST:
        raise ValueError("should be 1 MiB at least, with a unit, such as 70GiB")
    return memory


class Options(Section):
    """What `parallel.options` may hold under `streamed`."""

    memory: Annotated[Bytes, AfterValidator(_sized)] | None = Field(
        None, description="of a replica's device, for everything; without it, all that is free"
    )
    prefetch: Annotated[int, Field(ge=0, le=16)] | Literal["auto"] = Field(
        "auto", description="layers that are read ahead while one is computed"
    )
    spill_dir: Annotated[str, Matching(r"/.*", "an absolute path")] | None = Field(
        None, description="of the node: a folder on disk for the KV cache that memory can't hold"
    )

    @property
    def spill_folder(self) -> Path:
        return Path(self.spill_dir or tempfile.gettempdir())


def place(checkpoint: Checkpoint, machines: Machines, spec: JobSpec, demand: Demand) -> Plan:
    """What stays in memory, how far is read ahead, and the batch that makes the most of a sweep.

    Raises UsageError for a model whose layers can't be run one by one, and for stages and shards.
    """
    options = Options.model_validate(spec.parallel.options)
    _check(checkpoint, spec)
    subject = Subject(checkpoint, machines, spec, demand)
    ranks = homes(spec.parallel, machines)
    budget = _budget(subject, options, len(ranks) // machines.nodes)
    best = budget.best()
    draft = best or budget.smallest()
    rows = draft.batch.groups * draft.batch.slots
    notes = subject.notes(draft.batch.model_copy(update={"slots": rows}))
    if machines.device == "cpu" or draft.spilled:
        notes.append(machines.host_note)
    notes += _told(draft) if best else [_too_small(draft, budget)]
    notes += _wasted(draft, len(ranks) // machines.nodes) + _not_as_asked(draft, options, budget)
    replayed = draft.replayed()
    return Plan(
        fits=best is not None,
        reasons=[note for note in notes if note],
        strategy="streamed",
        world_size=len(ranks),
        ranks_per_node=len(ranks) // machines.nodes,
        devices=[_row(home, draft, budget.memory, replayed) for home in ranks],
        placements=[
            Placement(
                rank=home.rank,
                replica=home.replica,
                node=home.node,
                gpus=() if home.gpu is None else (home.gpu,),
                streaming=draft.streaming(),
            )
            for home in ranks
        ],
        batch=draft.batch,
        predicted=_predicted(subject, draft, replayed),
        **subject.facts(),
    )


def load(
    placement: Placement, plan: Plan, spec: JobSpec, recorder: Recorder, gang: Gang
) -> StepModel:
    """This rank's copy; it works alone, so it needs no ``gang``. Where all of it stays, it is loaded as under
    sequential."""
    from launcher.model.streamed_load import load_streamed, load_whole

    if placement.streaming is None:
        return load_whole(spec.model, plan, recorder)
    folder = Options.model_validate(spec.parallel.options).spill_dir
    return load_streamed(spec.model, plan, placement.streaming, recorder, folder)


def _check(checkpoint: Checkpoint, spec: JobSpec) -> None:
    for name, value in (("stages", spec.parallel.stages), ("tensor", spec.parallel.tensor)):
        if value != 1:
            raise UsageError(
                f"strategy streamed has no {name}: a replica is one process",
                where=f"parallel.{name}",
                fix="take it out; parallel.replicas makes copies that share nothing",
            )
    if reason := can_split(checkpoint.config, checkpoint.tensors):
        raise UsageError(
            f"a {checkpoint.config.get('model_type')} can't be streamed: {reason}",
            where="parallel.strategy",
            fix="set parallel.strategy to sequential",
        )
    kind, dtype = str(checkpoint.config.get("model_type")), checkpoint.dtype(spec.model.dtype)
    if reason := not_streamed(kind, dtype):
        raise UsageError(
            f"a {kind} can't be streamed: {reason}",
            where="model.dtype",
            fix="set model.dtype to float32, or parallel.strategy to sequential",
        )


def _budget(subject: Subject, options: Options, ranks_per_node: int) -> Budget:
    machines = subject.machines
    host = machines.host_bytes // ranks_per_node
    there = machines.gpu.memory_bytes if machines.gpu else host
    beside = int(host * HOST_SHARE) if machines.gpu else None
    if beside is None and machines.here:  # a node of a cluster is asked when its ranks load
        folder = options.spill_folder
        beside = 0 if in_memory(folder) else int(FREE_SHARE * room(str(folder))) // ranks_per_node
    return Budget(
        subject,
        memory=there if options.memory is None else min(options.memory, there),
        host=beside,
        buffers=BUFFERS if options.prefetch == "auto" else (options.prefetch + 1,),
    )


def _predicted(subject: Subject, draft: Draft, replayed: Replayed) -> Predicted:
    """What sweeps do; not all is read before them."""
    if draft.buffers is None:
        return subject.predicted(replayed, bubble=0.0)
    found = subject.predicted(replayed, bubble=0.0, loaded=draft.loaded)
    read = draft.read_bytes * replayed.rounds / replayed.tokens
    return found.model_copy(update={"read_bytes_per_token": read})


def _row(home: Home, draft: Draft, capacity: int, replayed: Replayed) -> DevicePlan:
    return DevicePlan(
        replica=home.replica,
        stage=0,
        rank=home.rank,
        device="cpu" if home.gpu is None else f"cuda:{home.gpu}",
        layers=(0, draft.subject.model.dims.layers - 1),
        weights_bytes=draft.weights,
        kv_bytes=draft.kv,
        activation_bytes=draft.activations,
        peak_bytes=draft.peak,
        capacity_bytes=capacity,
        **replayed.of_stage(0),
        **draft.subject.loading(draft.loaded) | {"load_s": draft.subject.load_s(draft.loaded)},
    )


def _told(draft: Draft) -> list[str]:
    """What is read for the batch, and where its cache is."""
    if draft.buffers is None:
        return ["the whole model stays in memory: nothing is streamed"]
    batch, total = draft.batch, len(draft.sizes.layers)
    rows = batch.groups * batch.slots
    found = [
        f"{draft.layers} of {total} layers stay in memory; every sweep reads {gib(draft.read_bytes)} "
        f"for up to {rows} sequences, {gib(draft.read_bytes / rows)} per token"
    ]
    if draft.buffers == 1:
        found.append("nothing is read ahead: parallel.options.memory has room for one layer only")
    if draft.spilled:
        place = "on disk" if draft.subject.machines.device == "cpu" else "in the host's memory"
        found.append(
            f"{gib(draft.spilled)} of KV cache are kept {place} and moved at every sweep: "
            f"that of {batch.groups - draft.kept} of {batch.groups} groups"
        )
    return found


def _wasted(draft: Draft, ranks_per_node: int) -> list[str]:
    """GPUs that are empty, and how many would make streaming needless."""
    found = unused(draft.subject.machines, ranks_per_node, "replicas")
    return found if draft.buffers is None else [*found, *enough_gpus(draft.subject)]


def _not_as_asked(draft: Draft, options: Options, budget: Budget) -> list[str]:
    machines, folder = draft.subject.machines, options.spill_folder
    found = []
    if options.memory is not None and options.memory > budget.memory:
        found.append(
            f"parallel.options.memory: {gib(options.memory)} are more than a rank's device has: "
            f"planned with {gib(budget.memory)}"
        )
    on_disk = machines.here and machines.device == "cpu" and draft.buffers is not None
    if on_disk and in_memory(folder):
        found.append(
            f"no KV cache goes to {folder}, which is in memory (tmpfs): "
            "parallel.options.spill_dir names a folder on a disk"
        )
    return found


def _too_small(smallest: Draft, budget: Budget) -> str:
    if smallest.peak <= budget.memory:
        on_disk = smallest.subject.machines.device == "cpu"
        place = "on the disk (parallel.options.spill_dir)" if on_disk else "in the host's memory"
        return (
            f"{gib(smallest.spilled)} of KV cache find no room {place}, of which "
            f"{gib(budget.host or 0)} may hold caches: fewer batch.groups or batch.slots need less"
        )
    needed = gib(smallest.peak + (1 << 26))  # so that what is printed, rounded, is enough
    return (
        f"{gib(budget.memory)} are too little, the smallest that works is {needed}: "
        f"{gib(smallest.weights)} for what is read, {gib(smallest.kv)} KV cache of "
        f"{smallest.batch.slots} x {smallest.batch.max_length} tokens, {gib(smallest.activations)} "
        f"activations and {gib(smallest.peak - smallest.weights - smallest.kv - smallest.activations)} "
        "for the framework"
    )
