"""Tensor parallelism over real ranks: shards compute what the whole model does, and so do their products with
stages and replicas, through the command line; whatever becomes of a rank."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gate import Gate
from jobs import (
    PATIENCE_S,
    command,
    journaled,
    launcher,
    mixed_rows,
    texts,
    wait_for,
    write_job,
)
from models import make_model
from tensor_ranks import Shard, drive, run_shards

from launcher.job.spec import JobSpec, ModelSpec
from launcher.model.weights import Loading, load_model
from launcher.plan.checkpoint import Checkpoint
from launcher.plan.machines import Machines
from launcher.plan.plan import Plan
from launcher.records import Demand
from launcher.runtime import process
from launcher.strategies import tensor

MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "mistral": {},
    "mixtral": {},
    "phi3": {},
    "gemma2": {},
    "gpt_neox": {},
    "olmo2": {},  # of no family that plan knows
    # Four KV heads are shared by all ranks; two of them, as the others have, not by four ranks.
    "llama-heads": {"num_key_value_heads": 4},
    "qwen3-heads": {"num_key_value_heads": 4},
    "llama-tied": {"tie_word_embeddings": True},
    "llama-bias": {"attention_bias": True, "mlp_bias": True},
    # Nothing but the MLP can be cut evenly, and the last rank has fewer tokens and outputs.
    "llama-odd": {
        "vocab_size": 401,
        "hidden_size": 48,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
    },
    "gpt_neox-odd": {"num_attention_heads": 3, "hidden_size": 48},
}
LARGE = {"hidden_size": 512, "intermediate_size": 2048, "head_dim": 128, "num_hidden_layers": 4}
PARTS = ("busy", "transfer", "weights", "bubble", "host_gap", "no_work")
ROWS, HELD_AT = 40, 20  # rows: of a run, and those of one that is interrupted
TWO_BY_TWO = {"strategy": "pipeline", "stages": 2, "tensor": 2}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    made = {
        name: make_model(folder / name, name.partition("-")[0], num_hidden_layers=2, **changes)
        for name, changes in MODELS.items()
    }
    return {**made, "large": make_model(folder / "large", "llama", **LARGE)}


@pytest.fixture(scope="module")
def whole(paths: dict[str, Path]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Logits and tokens of the unsplit models."""
    torch.set_num_threads(1)
    specs = {name: ModelSpec(path=str(paths[name]), dtype="float32") for name in MODELS}
    return {name: drive(load_model(spec, Loading("float32"))) for name, spec in specs.items()}


@pytest.fixture(scope="module", params=[2, 4], ids="{} ranks".format)
def shards(
    request: pytest.FixtureRequest, paths: dict[str, Path], tmp_path_factory: Any
) -> dict[str, list[Shard]]:
    """By model, what each rank says."""
    with (paths["large"] / "model.safetensors").open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    found = run_shards(list(paths.values()), request.param, tmp_path_factory.mktemp("shards"))
    return dict(zip(paths, found, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_shards_compute_what_the_whole_model_does(
    name: str, shards: dict[str, list[Shard]], whole: dict[str, tuple[torch.Tensor, torch.Tensor]]
) -> None:
    logits, tokens = whole[name]
    for shard in shards[name]:
        assert torch.equal(shard.tokens, tokens)
        assert (shard.logits - logits).abs().max() < 1e-5 * max(1.0, float(logits.abs().max()))
        assert torch.equal(shard.logits, shards[name][0].logits), "ranks may part"


@pytest.mark.parametrize("name", [name for name in MODELS if name != "olmo2"])
def test_a_rank_holds_what_the_plan_says(
    name: str, shards: dict[str, list[Shard]], paths: dict[str, Path]
) -> None:
    degree = len(shards[name])
    planned = {device.weights_bytes for device in plan(paths[name], degree).devices}
    held = [shard.weights_bytes for shard in shards[name]]
    if name.endswith("-odd"):
        assert planned == {max(held)}
    else:
        assert planned == set(held)


def plan(path: Path, degree: int) -> Plan:
    spec = JobSpec.model_validate(
        {
            "name": "test",
            "model": {"path": str(path), "dtype": "float32"},
            "parallel": {"strategy": "tensor", "tensor": degree},
            "input": {"path": "none"},
        }
    )
    machines = Machines("cpu", 1, 0, None, 2**36)
    return tensor.place(Checkpoint.read(path), machines, spec, Demand(10, 30, 10))


def test_a_node_reads_the_checkpoint_once(
    shards: dict[str, list[Shard]], paths: dict[str, Path]
) -> None:
    size = (paths["large"] / "model.safetensors").stat().st_size
    read = sum(shard.read_bytes for shard in shards["large"])
    if read < size / 2:
        pytest.skip("this filesystem keeps files in memory")
    assert read < 1.15 * size


@pytest.fixture(scope="module")
def unsplit(whole_texts: Callable[[int], dict[str, str]]) -> dict[str, str]:
    return whole_texts(ROWS)


@pytest.mark.parametrize(
    ("parallel", "writers"),
    [
        ({"strategy": "tensor", "tensor": 2}, [0]),
        pytest.param({**TWO_BY_TWO, "replicas": 2}, [0, 4], marks=pytest.mark.slow),
    ],
    ids=["2 shards", "2 x 2 x 2"],  # 2 x 2 are the runs that are killed
)
def test_texts_are_those_of_the_whole_model(
    parallel: dict[str, Any], writers: list[int], tmp_path: Path, unsplit: dict[str, str]
) -> None:
    run = tmp_path / "run"
    batch = {"slots": 8, "prefill_chunk": 16}
    launcher(
        "run",
        write_job(tmp_path, mixed_rows(ROWS), parallel=parallel, batch=batch),
        "--run-dir",
        run,
    )
    assert texts(run) == unsplit
    written = [int(path.stem[-4:]) for path in sorted((run / "journals").glob("w*"))]
    assert written == writers
    summary = json.loads((run / "summary.json").read_text())
    replica = parallel.get("stages", 1) * 2
    places = [(s["replica"], s["stage"], s["shard"], s["rank"]) for s in summary["stages"]]
    ranks = range(summary["world_size"])
    assert places == [(r // replica, r % replica // 2, r % 2, r) for r in ranks]
    page, last = (run / "report.html").read_text(), f"{parallel.get('stages', 1) - 1}.1"
    assert f"stage {last}" in page, "in the tables"
    assert f'stage {last}"' in page, "in the timeline"
    # A replica that comes late finds no rows left; its ranks then have done nothing.
    worked = {rank for rank in writers if journal_of(run, rank).stat().st_size}
    assert worked
    for stage in summary["stages"]:
        if stage["replica"] * replica in worked:
            assert sum(stage[part] for part in PARTS) == pytest.approx(1.0)
            assert min(stage["busy"], stage["transfer"]) > 0


def journal_of(run: Path, rank: int) -> Path:
    (found,) = (run / "journals").glob(f"w*-r{rank:04d}.jsonl")
    return found


def test_texts_of_backend_tensor_parallel(tmp_path: Path, unsplit: dict[str, str]) -> None:
    """One rank that drives two devices, each with a shard; what it measures is true of both."""
    run = tmp_path / "run"
    parallel = {"strategy": "tensor", "tensor": 2, "options": {"backend": "tensor_parallel"}}
    batch = {"slots": 8, "prefill_chunk": 16}
    launcher(
        "run",
        write_job(tmp_path, mixed_rows(ROWS), parallel=parallel, batch=batch),
        "--run-dir",
        run,
    )
    assert texts(run) == unsplit
    summary = json.loads((run / "summary.json").read_text())
    assert summary["world_size"] == 1
    assert [(s["stage"], s["shard"], s["rank"]) for s in summary["stages"]] == [
        (0, 0, 0),
        (0, 1, 0),
    ]
    for stage in summary["stages"]:
        assert sum(stage[part] for part in PARTS) == pytest.approx(1.0)
        assert min(stage["busy"], stage["transfer"]) > 0


def start(folder: Path) -> subprocess.Popen[str]:
    """A run that is under way, and held there."""
    batch = {"slots": 2, "groups": 4}
    spec = write_job(folder, mixed_rows(ROWS), parallel=TWO_BY_TWO, batch=batch)
    running = subprocess.Popen(
        command("run", spec, "--run-dir", folder / "run"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **Gate(folder / "gate", HELD_AT, patient=True).env},
    )
    wait_for(lambda: journaled(folder / "run") > 4)
    return running


# The one that runs the engine is killed in test_pipeline.py.
@pytest.mark.parametrize("victim", [1, 2])
def test_a_killed_shard_is_named_and_ends_the_world_which_resumes(
    victim: int, tmp_path: Path, unsplit: dict[str, str]
) -> None:
    run, running = tmp_path / "run", start(tmp_path)
    pids = [json.loads(path.read_text())["pid"] for path in sorted((run / "status").glob("*"))]
    os.kill(pids[victim], signal.SIGKILL)
    _, said = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 75, said
    # The agent or the launcher of the ranks, whoever notices first.
    assert re.search(rf"rank {victim} (ended with signal SIGKILL|died)", said)
    assert all(process.start_time(pid) is None for pid in pids)
    assert journaled(run) < ROWS
    launcher("resume", run)
    assert texts(run) == unsplit


def test_interrupt_drains_all_shards(tmp_path: Path) -> None:
    run, running = tmp_path / "run", start(tmp_path)
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 130
    phases = [json.loads(path.read_text())["phase"] for path in sorted((run / "status").glob("*"))]
    assert phases == ["finished"] * 4
