"""What a plan of stages has to say to a person: why it does not fit and what would, and what stays idle."""

from __future__ import annotations

from launcher.plan.advice import half_as_wide, shortage, unused
from launcher.plan.plan import Batch
from launcher.plan.staged import Draft, Drafting
from launcher.plan.subject import Subject

IDLE = 0.1  # of the stages' time, above which it is said why


def why_no_stages(draft: Draft, drafting: Drafting) -> list[str]:
    """What is missing, and what would do."""
    fitted, replica = draft.fitted, draft.replica
    found = shortage(replica, fitted.batch, fitted.slots)
    if fitted.slots:
        return found
    if replica.kind == "cuda":
        found += _more_ranks(drafting, fitted.batch)
    if drafting.layers is not None:
        found.append("without parallel.options.layers, the plan balances the stages")
    if replica.kind == "cpu":
        found.append("batch.max_length and batch.slots decide what the cache takes")
    return found + half_as_wide(replica)


def _more_ranks(drafting: Drafting, batch: Batch) -> list[str]:
    """How many stages or shards would do."""
    if drafting.subject.spec.parallel.strategy == "tensor":
        name, needed = "tensor", drafting.shards_needed(batch)
    else:
        name, needed = "stages", drafting.stages_needed(batch)
    return [f"parallel.{name}: {needed} would do, with a GPU like these for each"] if needed else []


def idle(draft: Draft, subject: Subject, ranks_per_node: int) -> list[str]:
    """GPUs that are empty, and stages that wait for each other."""
    parallel, machines = subject.spec.parallel, subject.machines
    stages, groups = parallel.stages, draft.fitted.batch.groups
    found = unused(machines, ranks_per_node, "stages or replicas")
    if parallel.schedule == "naive":
        if subject.spec.batch.groups not in ("auto", 1):
            found.append(
                f"schedule naive has one group in flight: batch.groups: {subject.spec.batch.groups} is not used"
            )
        if stages > 1:
            found.append(
                f"the {stages} stages take turns: each is busy at most {100 // stages} % of the time; "
                "schedule: ring keeps them busy"
            )
        return found
    if draft.exchange > IDLE:
        found.append(
            f"the {parallel.tensor} ranks of a stage exchange results {round(100 * draft.exchange)} % of the time: "
            "fewer shards or more slots make that less"
        )
    if groups < stages:
        found.append(f"{groups} groups can't keep {stages} stages busy: batch.groups: {stages} can")
    elif draft.simulated.utilization + draft.exchange < 1 - IDLE:
        found += _uneven(draft) if parallel.schedule == "ring" else [_drained(draft)]
    demand = subject.demand
    if demand.exact and demand.sequences // parallel.replicas < groups:
        what = "rows" if demand.answers == 1 else f"rows with {demand.sequences} answers"
        found.append(
            f"{demand.rows} {what} can't fill {groups} groups of {parallel.replicas} replicas"
        )
    return found


def _uneven(draft: Draft) -> list[str]:
    busy = [stage.busy for stage in draft.simulated.stages]
    slowest = max(range(len(busy)), key=busy.__getitem__)
    if busy[slowest] + draft.exchange < 1 - IDLE:  # they wait for links, not for each other
        return ["moving hidden states takes long beside these stages: fewer stages, or more slots"]
    return [
        f"stage {slowest} takes longest, and the others wait for it: whole layers, embedding and head "
        f"can't be shared more evenly by {len(busy)} stages"
    ]


def _drained(draft: Draft) -> str:
    idle_share = round(100 * (1 - draft.simulated.utilization))
    return f"schedule gpipe drains the stages for every token, {idle_share} % of their time; ring does not"
