"""Predicted memory of ranks that share tensors against what real ones take."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from held_memory import BATCH, LARGEST, cached, config_of, fill, model_of, most_held, weights_bytes
from models import random_model

from launcher.disk import read_json, write_json
from launcher.job.spec import ModelSpec
from launcher.model.gang import Gang
from launcher.model.group import TensorGroup
from launcher.model.packed import pack_linears
from launcher.model.runner import StageRunner
from launcher.model.sharding import Sharding
from launcher.model.stage import load_stage
from launcher.plan.staged import StagedReplica
from launcher.runtime.network import free_port

KINDS = ("llama", "gemma2", "mixtral")
RANKS, LAYERS = 2, 6


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    """By kind what the first of two ranks holds."""
    folder = tmp_path_factory.mktemp("shards")
    for kind in KINDS:
        random_model(config_of(kind)).save_pretrained(folder / kind)
    context, port = multiprocessing.get_context("spawn"), free_port("127.0.0.1")
    ranks = [context.Process(target=_rank, args=(n, port, folder)) for n in range(RANKS)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0] * RANKS
    return {kind: read_json(folder / f"{kind}.json") for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_peak_of_shards_is_as_predicted(kind: str, measured: dict[str, dict[str, int]]) -> None:
    made = model_of(kind, RANKS)
    share = StagedReplica(made, (LAYERS,), 2**30, "cpu").shares(BATCH)[0]
    found = measured[kind]
    assert share.kv == found["cached"]
    assert share.weights == found["weights"] - made.tied_bytes
    assert share.peak - share.reserve == pytest.approx(sum(found.values()), rel=0.05)


def _rank(rank: int, port: int, folder: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    gang = Gang.join(rank, RANKS, b"key", 240.0)
    group = TensorGroup.join(gang, RANKS)
    for kind in KINDS:
        spec = ModelSpec(path=str(folder / kind), dtype="float32")
        model = load_stage(spec, "float32", (0, LAYERS - 1), LAYERS, "cpu", Sharding(group))
        pack_linears(model)
        runner = StageRunner(model, BATCH)
        fill(runner)
        held = max(most_held(runner.run, step) for step in LARGEST)
        if rank == 0:
            found = {"weights": weights_bytes([model]), "cached": cached(runner), "held": held}
            write_json(folder / f"{kind}.json", found)
    gang.leave()
