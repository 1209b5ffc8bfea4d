"""Checkpoints: shapes against the real classes, and files that are broken in every way we know."""

from __future__ import annotations

import json
import math
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from models import make_model
from transformers import AutoConfig, AutoModelForCausalLM

from launcher.errors import WeightsError
from launcher.plan.checkpoint import Checkpoint
from launcher.plan.shapes import FAMILIES, known_config, parameters

SMALL: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}
GROUPED = {"num_key_value_heads": 2}
VARIANTS = [
    ("llama", {}),
    ("llama", {**GROUPED, "attention_bias": True, "mlp_bias": True, "head_dim": 24}),
    ("llama", {"tie_word_embeddings": True}),
    ("qwen2", {**GROUPED, "tie_word_embeddings": True}),
    ("qwen3", {**GROUPED, "attention_bias": True}),
    ("mistral", {**GROUPED, "head_dim": 32}),
    ("mixtral", {**GROUPED, "num_local_experts": 4}),
    ("gemma2", {**GROUPED, "head_dim": 32}),
    ("gpt_neox", {}),
    ("gpt_neox", {"attention_bias": False, "tie_word_embeddings": True}),
    ("phi3", {**GROUPED}),
]


@pytest.mark.parametrize(("kind", "changes"), VARIANTS)
def test_shapes_from_a_config_are_those_of_the_real_class(
    kind: str, changes: dict[str, Any]
) -> None:
    config = AutoConfig.for_model(kind, **(SMALL | changes))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    real = {name: tuple(p.shape) for name, p in model.named_parameters()}
    saved = json.loads(config.to_json_string())  # what config.json holds, defaults left out and all
    assert parameters(saved) == real
    assert Checkpoint.from_config(saved).parameters == sum(map(math.prod, real.values()))


@pytest.mark.parametrize(
    ("name", "count"),
    [  # as the models' own pages and papers give them
        ("meta-llama/Llama-2-70b-hf", 68_976_648_192),
        ("meta-llama/Llama-3.1-70B-Instruct", 70_553_706_496),
        ("meta-llama/Llama-3.1-405B", 405_853_388_800),
        ("Qwen/Qwen2.5-72B-Instruct", 72_706_203_648),
        ("mistralai/Mixtral-8x7B-v0.1", 46_702_792_704),
        ("mistralai/Mixtral-8x22B-v0.1", 140_620_634_112),
        ("google/gemma-2-27b", 27_227_128_320),
        ("EleutherAI/gpt-neox-20b", 20_554_567_680),
        ("microsoft/Phi-3-medium-4k-instruct", 13_960_238_080),
    ],
)
def test_well_known_models(name: str, count: int) -> None:
    checkpoint = Checkpoint.known(name)
    assert checkpoint is not None
    assert checkpoint.parameters == count
    assert "built-in table" in (checkpoint.note or "")


def test_table_of_well_known_models_has_no_dead_entry() -> None:
    table = json.loads(
        (Path(sys.modules["launcher.plan"].__path__[0]) / "known_models.json").read_text()
    )
    for name in table["models"]:
        config = known_config(name)
        assert config is not None
        assert config["model_type"] in FAMILIES
        assert Checkpoint.known(name) is not None
    assert Checkpoint.known("nobody/knows-it") is None


def test_70b_figures() -> None:
    checkpoint = Checkpoint.known("meta-llama/Llama-2-70b-hf")
    assert checkpoint is not None
    assert sum(t.nbytes for t in checkpoint.tensors.values()) == 137_953_296_384
    layer = sum(t.nbytes for n, t in checkpoint.tensors.items() if n.startswith("model.layers.7."))
    assert round(layer / 2**30, 2) == 1.59
    assert checkpoint.dtype() == "float16"
    assert checkpoint.dtype("bfloat16") == "bfloat16"


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt_neox", "mixtral"])
def test_read_is_what_transformers_saved(kind: str, tmp_path: Path) -> None:
    path = make_model(tmp_path / kind, kind)
    checkpoint = Checkpoint.read(path)
    model = AutoModelForCausalLM.from_pretrained(path)
    assert checkpoint.parameters == sum(p.numel() for p in model.parameters())
    assert checkpoint.dtype() == "float32"
    assert checkpoint.note is None


def test_read_shards_and_headers_alike(tmp_path: Path) -> None:
    whole = Checkpoint.read(make_model(tmp_path / "whole", "llama"))
    path = sharded(tmp_path / "shards")
    checkpoint = Checkpoint.read(path)
    assert len({tensor.file for tensor in checkpoint.tensors.values()}) > 1
    assert checkpoint.shapes == whole.shapes
    headers = {file.name: header_of(file)[0] for file in path.glob("*.safetensors")}
    remote = Checkpoint.from_headers(checkpoint.config, headers)
    assert remote.tensors == dict(checkpoint.tensors)


def test_buffers_and_a_head_that_is_the_embedding_are_no_parameters(tmp_path: Path) -> None:
    path = make_model(tmp_path / "model", "llama", tie_word_embeddings=True)
    before = Checkpoint.read(path).parameters
    file = path / "model.safetensors"
    add_tensor(file, "model.layers.0.self_attn.rotary_emb.inv_freq", [8])
    add_tensor(file, "lm_head.weight", [400, 64])
    assert Checkpoint.read(path).parameters == before


def test_plan_modules_import_no_torch() -> None:
    code = (
        "import sys\n"
        "from launcher import strategies\n"
        "from launcher.plan.checkpoint import Checkpoint\n"
        "from launcher.plan.machines import resolve_machines\n"
        "Checkpoint.known('meta-llama/Llama-2-70b-hf').shapes\n"
        "[strategies.get(name) for name in strategies.names()]\n"
        "print([m for m in ('torch', 'transformers', 'accelerate') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


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


def test_config_of_another_model(tmp_path: Path) -> None:
    path = make_model(tmp_path / "model", "llama")
    config = json.loads((path / "config.json").read_text()) | {"vocab_size": 500}
    (path / "config.json").write_text(json.dumps(config))
    assert "model.embed_tokens.weight is [400, 64] instead of [500, 64]" in refused(path)


def refused(path: Path) -> str:
    """What is said about a broken checkpoint: what and where."""
    with pytest.raises(WeightsError) as caught:
        Checkpoint.read(path)
    return str(caught.value)


def sharded(path: Path) -> Path:
    """A small Llama in several shards."""
    make_model(path, "llama")
    model = AutoModelForCausalLM.from_pretrained(path)
    (path / "model.safetensors").unlink()
    model.save_pretrained(path, max_shard_size="200KB")
    assert (path / "model.safetensors.index.json").exists()
    return path


def edit_index(path: Path, edit: Any) -> None:
    index = path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = edit(content["weight_map"])
    index.write_text(json.dumps(content))


def header_of(file: Path) -> tuple[dict[str, Any], bytes]:
    raw = file.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def write_header(file: Path, header: dict[str, Any], data: bytes) -> None:
    raw = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + data)


def add_tensor(file: Path, name: str, shape: list[int]) -> None:
    header, data = header_of(file)
    size = 4 * math.prod(shape)
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + size]}
    write_header(file, header | {name: entry}, data + bytes(size))


def drop_tensors(file: Path, part: str) -> None:
    """A whole and consistent file without the tensors whose names hold ``part``."""
    header, data = header_of(file)
    kept, end, packed = {}, 0, b""
    for name, entry in header.items():
        if name == "__metadata__" or part in name:
            continue
        begin, stop = entry["data_offsets"]
        packed += data[begin:stop]
        kept[name] = entry | {"data_offsets": [end, end + stop - begin]}
        end += stop - begin
    write_header(file, kept, packed)
