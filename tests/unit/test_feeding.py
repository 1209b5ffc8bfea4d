"""How much of a prompt a step of a pipeline feeds: as little as costs nothing, since other stages wait for long steps."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.job.spec import JobSpec
from launcher.plan.checkpoint import Checkpoint
from launcher.plan.machines import Machines
from launcher.plan.plan import Plan
from launcher.records import Demand
from launcher.strategies import pipeline

THIN = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 26,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 16000,
}


def planned(parallel: dict[str, Any], batch: dict[str, Any]) -> Plan:
    spec = JobSpec.model_validate(
        {
            "name": "test",
            "model": {"path": "none", "dtype": "float32"},
            "input": {"path": "none"},
            "parallel": {"strategy": "pipeline", **parallel},
            "batch": {"slots": 16, **batch},
        }
    )
    machines = Machines("cpu", 1, 0, None, 2**36)
    return pipeline.place(Checkpoint.from_config(THIN), machines, spec, Demand(192, 256, 64))


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("schedule", ["ring", "gpipe"])
def test_short_parts_keep_the_stages_busier_at_no_cost(groups: int, schedule: str) -> None:
    two = {"stages": 2, "schedule": schedule}
    free = planned(two, {"groups": groups})
    long = planned(two, {"groups": groups, "prefill_chunk": 256})
    assert 16 < free.batch.prefill_chunk < 256
    assert free.predicted.tokens_per_s > 0.99 * long.predicted.tokens_per_s
    assert free.predicted.utilization > long.predicted.utilization


@pytest.mark.parametrize(
    "parallel", [{"stages": 2, "schedule": "naive"}, {"stages": 1}], ids=["naive", "one stage"]
)
def test_where_no_stage_waits_long_parts_are_the_best(parallel: dict[str, Any]) -> None:
    assert planned(parallel, {}).batch.prefill_chunk == 256


def test_the_spec_has_the_last_word() -> None:
    two = {"stages": 2, "schedule": "ring"}
    assert planned(two, {"groups": 4, "prefill_chunk": 200}).batch.prefill_chunk == 200


def test_parts_are_longer_than_the_rows_that_decode() -> None:
    two = {"stages": 2, "schedule": "ring"}
    assert planned(two, {"groups": 2, "slots": 100}).batch.prefill_chunk > 100
