"""Checkpoints that are incomplete, inconsistent or somebody's trap: every one is refused, and the file is named."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from checkpoint_edits import drop_tensors, edit_index, refused, sharded, write_header
from models import make_model

from launcher.plan.checkpoint import Checkpoint

# Broken checkpoints. Each of these would load, with random or wrong weights, or worse.


def test_truncated_shard_is_named(tmp_path: Path) -> None:
    path = sharded(tmp_path / "model")
    shard = sorted(path.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-10])
    assert f"{shard.name} is truncated" in refused(path)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    path = sharded(tmp_path / "model")
    shard = sorted(path.glob("*.safetensors"))[0]
    shard.unlink()
    assert f"{shard.name} is missing" in refused(path)


def test_bytes_behind_the_last_tensor(tmp_path: Path) -> None:
    path = make_model(tmp_path / "model", "llama")
    with (path / "model.safetensors").open("ab") as file:
        file.write(b"x" * 5)
    assert "5 bytes behind" in refused(path)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "header"),
        (b"\x08\x00", "header"),
        (struct.pack("<Q", 2**62) + b"{}", "header would be"),
        (struct.pack("<Q", 50) + b"{}", "header would be"),
        (struct.pack("<Q", 0) + b"{}", "header would be"),
        (struct.pack("<Q", 4) + b"[[[[", "malformed JSON"),
        (struct.pack("<Q", 2) + b"[]", "not a JSON object"),
        (struct.pack("<Q", 4) + b"\xff\xfe{}", "malformed JSON"),
        (struct.pack("<Q", 200_000) + b"[" * 200_000, "nested too deeply"),
        (struct.pack("<Q", 17) + b'{"a": 1, "a": 22}', "there twice"),
    ],
)
def test_malformed_headers(raw: bytes, said: str, tmp_path: Path) -> None:
    path = make_model(tmp_path / "model", "llama")
    (path / "model.safetensors").write_bytes(raw)
    message = refused(path)
    assert said in message
    assert "model.safetensors" in message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data_offsets": [4, 260]}, "starts at byte 4"),
        ({"data_offsets": [0, 128]}, "can't take 128 bytes"),
        ({"data_offsets": [0, -128]}, "malformed"),
        ({"data_offsets": [0, 256, 512]}, "malformed"),
        ({"data_offsets": "0-256"}, "malformed"),
        ({"shape": [True, 64]}, "malformed"),
        ({"shape": [2**62, 2**62]}, "can't take"),
        ({"shape": None}, "malformed"),
        ({"dtype": "F33"}, "unknown dtype"),
        ({"dtype": ["F32"]}, "unknown dtype"),
    ],
)
def test_entries_that_contradict_themselves(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = make_model(tmp_path / "model", "llama")
    entry = {"dtype": "F32", "shape": [64], "data_offsets": [0, 256]} | change
    write_header(path / "model.safetensors", {"model.norm.weight": entry}, b"\0" * 256)
    assert said in refused(path)


def test_index_without_a_layer(tmp_path: Path) -> None:
    path = sharded(tmp_path / "model")
    edit_index(path, lambda m: {k: v for k, v in m.items() if ".layers.2." not in k})
    message = refused(path)
    assert "model.layers.2." in message
    assert "lacks" in message


def test_index_without_one_tensor_or_the_norm(tmp_path: Path) -> None:
    path = sharded(tmp_path / "one")
    edit_index(
        path, lambda m: {k: v for k, v in m.items() if k != "model.layers.1.mlp.up_proj.weight"}
    )
    assert "model.layers.1.mlp.up_proj.weight" in refused(path)
    path = sharded(tmp_path / "norm")
    edit_index(path, lambda m: {k: v for k, v in m.items() if k != "model.norm.weight"})
    assert "model.norm.weight" in refused(path)


def test_experts_of_a_layer_are_missed_by_name(tmp_path: Path) -> None:
    path = make_model(tmp_path / "model", "mixtral")
    drop_tensors(path / "model.safetensors", "layers.1.block_sparse_moe.experts.2.")
    assert "model.layers.1.block_sparse_moe.experts.2.w1.weight" in refused(path)


def test_layers_of_an_unknown_architecture_are_compared_with_each_other(tmp_path: Path) -> None:
    path = make_model(tmp_path / "model", "llama", num_hidden_layers=5)
    config = json.loads((path / "config.json").read_text()) | {"model_type": "newcomer"}
    (path / "config.json").write_text(json.dumps(config))
    assert Checkpoint.read(path).parameters
    drop_tensors(path / "model.safetensors", "layers.3.mlp.")
    assert "model.layers.3.mlp.down_proj.weight" in refused(path)


@pytest.mark.parametrize(
    "dropped",
    [("layers.0.input_layernorm",), ("layers.1.mlp.", "layers.3.mlp."), ()],
)
def test_layers_of_two_kinds_are_no_mistake(dropped: tuple[str, ...], tmp_path: Path) -> None:
    path = make_model(tmp_path / "model", "llama", num_hidden_layers=5)
    config = json.loads((path / "config.json").read_text()) | {"model_type": "newcomer"}
    (path / "config.json").write_text(json.dumps(config))
    for part in dropped:
        drop_tensors(path / "model.safetensors", part)
    assert Checkpoint.read(path).parameters


def test_index_that_names_a_tensor_its_shard_lacks(tmp_path: Path) -> None:
    path = sharded(tmp_path / "model")
    shards = sorted(file.name for file in path.glob("*.safetensors"))
    edit_index(path, lambda m: dict.fromkeys(m, shards[0]) | {"made.up": shards[1]})
    assert "but it does not" in refused(path)


@pytest.mark.parametrize(
    "name", ["../../../etc/hostname", "/etc/hostname", "..", "a/b.safetensors", "", "a\0b", "a\\b"]
)
def test_index_that_leads_out_of_the_directory(name: str, tmp_path: Path) -> None:
    path = sharded(tmp_path / "model")
    edit_index(path, lambda m: m | {"model.norm.weight": name})
    assert "not in its own directory" in refused(path)


def test_link_out_of_the_directory_is_refused_and_one_of_a_hub_cache_is_not(tmp_path: Path) -> None:
    source = make_model(tmp_path / "elsewhere", "llama")
    cache = tmp_path / "models--a--b"
    snapshot = cache / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for number, file in enumerate(source.iterdir()):
        shutil.copy(file, cache / "blobs" / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    assert Checkpoint.read(snapshot).parameters
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(source / "model.safetensors")
    assert "link out of the checkpoint" in refused(snapshot)
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to("../../blobs/gone")
    assert "is missing" in refused(snapshot)


def test_pickles_are_refused(tmp_path: Path) -> None:
    path = make_model(tmp_path / "model", "llama")
    (path / "model.safetensors").unlink()
    assert "no weights" in refused(path)
    (path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    assert "pickled" in refused(path)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{", "malformed JSON"),
        ("[]", "not a JSON object"),
        ('{"model_type": "llama"}', "is missing"),
        ('{"hidden_size": 64, "num_hidden_layers": 1000000000}', "num_hidden_layers"),
        ('{"hidden_size": 64, "num_hidden_layers": "4"}', "num_hidden_layers"),
    ],
)
def test_malformed_configs(config: str, said: str, tmp_path: Path) -> None:
    path = make_model(tmp_path / "model", "llama")
    (path / "config.json").write_text(config)
    message = refused(path)
    assert said in message
    assert str(path) in message


def test_no_config_at_all(tmp_path: Path) -> None:
    path = make_model(tmp_path / "model", "llama")
    (path / "config.json").unlink()
    assert "config.json is missing\n" in refused(path)


def test_config_of_another_model(tmp_path: Path) -> None:
    path = make_model(tmp_path / "model", "llama")
    config = json.loads((path / "config.json").read_text()) | {"vocab_size": 500}
    (path / "config.json").write_text(json.dumps(config))
    assert "model.embed_tokens.weight is [400, 64] instead of [500, 64]" in refused(path)
