"""Plans of pipelines for tests."""

from __future__ import annotations

import itertools
from typing import Any

from launcher.job.spec import JobSpec
from launcher.plan.checkpoint import Checkpoint
from launcher.plan.machines import Machines, gpu_profiles
from launcher.plan.plan import Plan
from launcher.records import Demand
from launcher.strategies import pipeline

GIB = 2**30
DEMAND = Demand(rows=10_000, longest_prompt_bytes=2000, max_new_tokens=256)
LLAMA = "meta-llama/Llama-2-70b-hf"
SMALL = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "vocab_size": 4096,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}


def machines(gpus: int, nodes: int = 1, gpu: str = "A100-80GB", host: int = 200) -> Machines:
    if not gpus:
        return Machines("cpu", nodes, 0, None, host * GIB)
    return Machines("cuda", nodes, gpus, gpu_profiles()[gpu], host * GIB)


def spec(
    stages: int = 4,
    dtype: str = "bfloat16",
    batch: dict[str, Any] | None = None,
    layers: list[int] | None = None,
    **parallel: Any,
) -> JobSpec:
    options = {} if layers is None else {"layers": layers}
    return JobSpec.model_validate(
        {
            "name": "test",
            "model": {"path": "org/model", "dtype": dtype},
            "input": {"path": "prompts.jsonl"},
            "parallel": {
                "strategy": "pipeline",
                "stages": stages,
                "options": options,
                **parallel,
            },
            "batch": batch or {},
        }
    )


def plan(
    where: Machines,
    job: JobSpec,
    model: str | dict[str, Any] = LLAMA,
    demand: Demand = DEMAND,
) -> Plan:
    checkpoint = (
        Checkpoint.known(model) if isinstance(model, str) else Checkpoint.from_config(model)
    )
    assert checkpoint is not None
    return pipeline.place(checkpoint, where, job, demand)


def counts(made: Plan) -> list[int]:
    """Layers of each stage of the first replica; they follow one another from the first to the last."""
    spans = [d.layers for d in made.devices if d.replica == 0]
    assert all(spans)
    found = [span for span in spans if span]
    assert found[0][0] == 0
    assert all(here[1] + 1 == there[0] for here, there in itertools.pairwise(found))
    return [last - first + 1 for first, last in found]


def said(made: Plan) -> str:
    return "\n".join(made.reasons)
