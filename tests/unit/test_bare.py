"""A model that is a config alone: it can be planned, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from models import small_config

from launcher.errors import WeightsError
from launcher.plan.checkpoint import Checkpoint
from launcher.prepare import Planned, check_weights, create_run, plan_job


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """Of a model in ``model``, a config and no more."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(small_config("llama").to_json_string())
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1 + 1 ="}\n')
    path = tmp_path / "job.yaml"
    path.write_text(
        "name: bare\nmodel: {path: model}\nparallel: {strategy: sequential}\n"
        "input: {path: rows.jsonl}\nresources: {device: cpu}\n"
    )
    return path


def planned(spec: Path, verify: bool = False) -> Planned:
    return plan_job(spec, [], here=True, say=lambda _: None, verify=verify)


def test_a_config_alone_is_planned_and_not_run(spec: Path, tmp_path: Path) -> None:
    made = planned(spec)
    assert made.plan.fits
    assert (
        made.plan.parameters == Checkpoint.from_config(small_config("llama").to_dict()).parameters
    )
    (note,) = (reason for reason in made.plan.reasons if "config alone" in reason)
    assert "there is no tokenizer" in note
    with pytest.raises(WeightsError, match=r"no weights: neither model\.safetensors"):
        check_weights(made)
    with pytest.raises(WeightsError, match="no weights"):
        create_run(made, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(WeightsError, match="no weights"):
        planned(spec, verify=True)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("pytorch_model.bin", "pickled"),
        ("model-00001-of-00002.safetensors", "no weights"),
        ("tf_model.h5", "no weights"),
        ("model.safetensors.index.json", "malformed JSON"),
    ],
)
def test_weights_that_cant_be_read_are_not_none(spec: Path, file: str, said: str) -> None:
    (spec.parent / "model" / "tokenizer.json").write_text("{}")
    (spec.parent / "model" / file).write_bytes(b"")
    with pytest.raises(WeightsError, match=said):
        planned(spec)


def test_a_config_that_does_not_tell_the_shapes(spec: Path) -> None:
    config = spec.parent / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "gpt2"}))
    with pytest.raises(WeightsError, match="does not tell the shapes of a gpt2"):
        planned(spec)
