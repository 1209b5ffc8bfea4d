"""Quantized checkpoints are refused by a plan with what tells of it, before anything is queued."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from adder import adder_path
from jobs import launcher, write_job

from launcher.errors import WeightsError
from launcher.plan.checkpoint import Checkpoint
from launcher.plan.headers import TensorInfo
from launcher.plan.quantized import why_quantized

PLAIN = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}
METHODS = [
    {"quantization_config": {"quant_method": "awq", "bits": 4}},
    {"compression_config": {"format": "pack-quantized"}},
    {"text_config": {"quantization_config": {"quant_method": "mxfp4"}}},
]


@pytest.mark.parametrize("config", METHODS)
def test_by_the_config(config: dict[str, Any], tmp_path: Path) -> None:
    model = shutil.copytree(adder_path(), tmp_path / "model")
    whole = json.loads((model / "config.json").read_text())
    if "text_config" in config:
        config = {"text_config": whole | config["text_config"]}
    (model / "config.json").write_text(json.dumps(whole | config))
    spec = write_job(tmp_path, 3, model={"path": "model"})
    said = launcher("plan", spec, code=3).stderr
    assert "the checkpoint is quantized" in said
    assert "in config.json" in said


def test_a_checkpoint_of_no_file_is_refused_where_its_dtype_matters() -> None:
    checkpoint = Checkpoint.known("meta-llama/Llama-3.1-8B")
    assert checkpoint is not None
    config = {**checkpoint.config, **METHODS[0]}
    with pytest.raises(WeightsError, match=r"quantized.*awq"):
        Checkpoint(config, checkpoint.tensors, "here").dtype()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("model.layers.0.self_attn.q_proj.qweight", "I32"),  # GPTQ, AWQ
        ("model.layers.0.self_attn.q_proj.weight_scale_inv", "F32"),  # fp8 in blocks
        ("model.layers.0.self_attn.q_proj.weight_packed", "I32"),  # compressed-tensors
        ("model.layers.0.mlp.experts.gate_up_proj_blocks", "U8"),  # mxfp4
        ("model.layers.0.self_attn.q_proj.SCB", "F32"),  # bitsandbytes, 8 bits
        ("model.layers.0.self_attn.q_proj.weight.quant_state.bitsandbytes__nf4", "U8"),
        ("model.layers.0.self_attn.q_proj.weight", "F8_E4M3"),
    ],
)
def test_by_the_tensors_where_the_config_does_not_say(name: str, dtype: str) -> None:
    bits = {"I32": 32, "F32": 32, "U8": 8, "F8_E4M3": 8}[dtype]
    entry = {"dtype": dtype, "shape": [4, 4], "data_offsets": [64, 64 + 2 * bits]}
    header = {"model.embed_tokens.weight": PLAIN, name: entry}
    config = json.loads((adder_path() / "config.json").read_text())
    with pytest.raises(WeightsError) as caught:
        Checkpoint.from_headers(config, {"model.safetensors": header})
    assert "quantized" in caught.value.what
    assert f"{name} of type {dtype}" in caught.value.what


def test_wide_numbers_are_no_quantization() -> None:
    tensors = {"model.norm.weight": TensorInfo("F64", (64,), "model.safetensors", 0, 512)}
    assert why_quantized({}, tensors) is None
