"""Backend tensor_parallel: shards in threads of one process compute and generate what the whole model does."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from models import make_model
from tensor_ranks import BATCH, drive, drive_runner
from test_engine import LENGTHS, Case, request, run

from launcher.errors import PreflightError, UsageError
from launcher.job.spec import JobSpec, ModelSpec
from launcher.measure.spans import NullRecorder
from launcher.model.local import RunnerStepModel
from launcher.model.step import Step
from launcher.model.tensor_parallel_backend import ShardsRunner, load_shards
from launcher.model.weights import Loading, load_model
from launcher.plan.checkpoint import Checkpoint
from launcher.plan.machines import Machines, gpu_profiles
from launcher.plan.plan import Batch, Plan
from launcher.records import Demand
from launcher.strategies import tensor

THREE = {"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1}
CASES: list[tuple[str, int, dict[str, Any]]] = [
    ("llama", 2, {}),
    ("mistral", 2, {}),
    ("qwen3", 2, {}),
    ("gemma2", 2, {}),
    ("gpt_neox", 2, {}),
    ("mixtral", 2, {}),
    ("phi3", 2, {}),
    ("olmo2", 2, {}),
    ("llama", 4, {"num_key_value_heads": 4}),
    ("llama", 4, {}),  # two KV heads: all shards have them
    ("llama", 2, {"vocab_size": 401, **THREE}),
    ("llama", 2, {"tie_word_embeddings": True}),
    ("gemma2", 2, {"tie_word_embeddings": True}),
    ("llama", 2, {"attention_bias": True, "mlp_bias": True}),
    ("llama", 1, {}),
]
GIB = 2**30


def place(path: Path | None, machines: Machines, **parallel: Any) -> Plan:
    checkpoint = Checkpoint.read(path) if path else Checkpoint.known("meta-llama/Llama-2-70b-hf")
    assert checkpoint is not None
    options = {"backend": "tensor_parallel"}
    spec = JobSpec.model_validate(
        {
            "name": "test",
            "model": {"path": str(path or "org/model"), "dtype": "float32" if path else "bfloat16"},
            "parallel": {"strategy": "tensor", "options": options, **parallel},
            "input": {"path": "none"},
        }
    )
    return tensor.place(checkpoint, machines, spec, Demand(1000, 2000, 256))


def load(path: Path, count: int, batch: Batch = BATCH) -> RunnerStepModel:
    plan = place(path, Machines("cpu", 1, 0, None, 2**36), tensor=count)
    plan = plan.model_copy(update={"batch": batch})
    spec = ModelSpec(path=str(path), dtype="float32")
    return load_shards(spec, plan, ["cpu"] * count, NullRecorder())


@pytest.mark.parametrize(("family", "count", "changes"), CASES)
def test_shards_compute_what_the_whole_model_does(
    family: str, count: int, changes: dict[str, Any], tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    path = make_model(tmp_path, family, num_hidden_layers=2, **changes)
    whole = load_model(ModelSpec(path=str(path), dtype="float32"), Loading("float32"))
    logits, tokens = drive(whole)
    model = load(path, count)
    found = drive_runner(model._runner)
    model.close()
    assert torch.equal(found[1], tokens)
    assert (found[0] - logits).abs().max() < 1e-5 * max(1.0, float(logits.abs().max()))


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gemma2", "gpt_neox"])
def test_the_engine_generates_what_the_library_does(family: str, tmp_path: Path) -> None:
    """Prompts of many lengths in few slots, so that steps mix prompts with rows that decode."""
    path = make_model(tmp_path, family)
    case = Case(path)
    batch = Batch(groups=2, slots=3, max_length=80, prefill_chunk=16)
    requests = [request(n, prompt) for n, prompt in enumerate(case.prompts)]
    found = run(load(path, 2, batch), case.text, batch, requests)
    assert [found[f"row-{n}"].text for n in range(len(LENGTHS))] == case.expected


def test_without_the_package_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "tensor_parallel", None)
    with pytest.raises(PreflightError) as caught:
        load(make_model(tmp_path, "llama"), 2)
    assert "pip install tensor_parallel==2.0.0" in str(caught.value)
    assert caught.value.where == "parallel.options.backend"


def test_a_model_that_cannot_be_cut_is_refused(tmp_path: Path) -> None:
    path = make_model(tmp_path, "gpt2", n_positions=256)
    with pytest.raises(UsageError, match="no plan"):
        load(path, 2)


class Part:
    """In the place of one shard: it waits for ever, as if for another one, or fails."""

    device = torch.device("cpu")

    def __init__(self, error: Exception | None = None) -> None:
        self._error, self.closed = error, threading.Event()

    def run(self, step: Step) -> torch.Tensor:
        if self._error is not None:
            raise self._error
        self.closed.wait()
        return torch.zeros(1, 1)

    def close(self) -> None:
        self.closed.set()


def test_a_shard_that_fails_is_not_waited_for_by_the_others() -> None:
    ones = torch.ones(1, dtype=torch.int64)
    waiting, failing = Part(), Part(MemoryError("no room"))
    runner: Any = ShardsRunner([waiting, failing])  # type: ignore[list-item]
    with pytest.raises(MemoryError, match="no room"):
        runner.run(Step(0, "decode", 0 * ones, ones[:, None], 0 * ones, ones))
    waiting.close()
    runner.close()
    assert failing.closed.wait(10)


def test_one_rank_has_the_devices_of_a_replica() -> None:
    gpus = Machines("cuda", 2, 8, gpu_profiles()["A100-80GB"], 400 * GIB)
    made = place(None, gpus, tensor=4, replicas=4)
    assert (made.world_size, made.ranks_per_node) == (4, 2)
    found = [(p.rank, p.replica, p.node, p.gpus) for p in made.placements]
    assert found == [
        (0, 0, 0, (0, 1, 2, 3)),
        (1, 1, 0, (4, 5, 6, 7)),
        (2, 2, 1, (0, 1, 2, 3)),
        (3, 3, 1, (4, 5, 6, 7)),
    ]
    rows = [(d.rank, d.stage, d.shard, d.device) for d in made.devices[4:8]]
    assert rows == [(1, 0, shard, f"cuda:{4 + shard}") for shard in range(4)]
    assert made.ranks_of(2) == [2]
    assert made.predicted.tokens_per_s is None
    assert "its speed is not predicted" in "\n".join(made.reasons)
    speeds = ("utilization", "bubble", "transfer", "prefill_s", "decode_s", "load_s", "bytes_read")
    assert {getattr(device, name) for device in made.devices for name in speeds} == {None}


def test_one_process_is_on_one_node() -> None:
    gpus = Machines("cuda", 2, 4, gpu_profiles()["A100-80GB"], 400 * GIB)
    with pytest.raises(UsageError, match="on several nodes") as caught:
        place(None, gpus, tensor=8)
    assert caught.value.where == "parallel.tensor"
