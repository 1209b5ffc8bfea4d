"""How much is in flight: the batch that a spec asks for, with what it leaves to us filled in. No torch."""

from __future__ import annotations

from pathlib import Path

from launcher.job.spec import JobSpec
from launcher.plan.dims import Dims
from launcher.plan.plan import Batch
from launcher.records import Demand

# A token is at least one byte of text, so a prompt has no more tokens than bytes; around it a chat template
# and its special tokens take so many more.
TEMPLATE_TOKENS = 256
MOST_SLOTS = {"cuda": 256, "cpu": 32}  # more sequences hardly add tokens per second
# Tokens of a step, those of sequences that decode included.
PREFILL_CHUNK = {"cuda": 512, "cpu": 256}


def largest_batch(
    spec: JobSpec, dims: Dims, demand: Demand, device: str, groups: int | None = None
) -> Batch:
    """The batch with the most slots that make sense where the spec leaves their number open.

    ``groups`` is the number of them where a strategy decides on it: without one, the spec's, or 1.
    """
    if groups is None:
        groups = 1 if spec.batch.groups == "auto" else spec.batch.groups
    length = _max_length(spec, dims, demand)
    rows = -(-demand.share(spec.parallel.replicas) // groups)  # no more slots than fill
    chunk = spec.batch.prefill_chunk
    slots = (
        max(1, min(MOST_SLOTS[device], rows)) if spec.batch.slots == "auto" else spec.batch.slots
    )
    return Batch(
        groups=groups,
        slots=slots,
        max_length=length,
        prefill_chunk=min(PREFILL_CHUNK[device] if chunk == "auto" else chunk, slots * length),
    )


def batch_notes(spec: JobSpec, dims: Dims) -> list[str]:
    """What is planned otherwise than the spec says."""
    asked = spec.batch.max_length
    if asked == "auto" or not dims.context or asked <= dims.context:
        return []
    return [f"batch.max_length {asked} is more than the model's context: {dims.context} is taken"]


def _max_length(spec: JobSpec, dims: Dims, demand: Demand) -> int:
    asked = spec.batch.max_length
    if asked == "auto":
        asked = demand.longest_prompt_bytes + _template_tokens(spec) + demand.max_new_tokens
    return min(asked, dims.context) if dims.context else asked


def _template_tokens(spec: JobSpec) -> int:
    if spec.input.template in ("auto", "none"):
        return TEMPLATE_TOKENS
    path = Path(spec.input.template)
    return TEMPLATE_TOKENS + (path.stat().st_size if path.is_file() else 0)
