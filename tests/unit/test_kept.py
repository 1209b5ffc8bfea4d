"""Models that can't be streamed: with modules that transformers keeps in float32, or with weights that it computes. Told
from its source as its classes and its table have it, and refused by a plan."""

from __future__ import annotations

import importlib

import pytest
from test_streamed_place import DEMAND, LLAMA
from transformers import CONFIG_MAPPING
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightConverter

from launcher.errors import UsageError
from launcher.job.spec import JobSpec
from launcher.model.recipe import _operations, _Unlike
from launcher.plan.checkpoint import Checkpoint
from launcher.plan.kept import _is_computed, kept_in_float32, not_streamed
from launcher.plan.machines import Machines
from launcher.plan.plan import Plan
from launcher.strategies import streamed


@pytest.mark.parametrize(
    ("model_type", "classes"),
    [
        ("dots1", "Dots1PreTrainedModel"),
        ("afmoe", "AfmoePreTrainedModel"),
        ("llama", "LlamaPreTrainedModel"),
    ],
)
def test_source_says_what_the_classes_do(model_type: str, classes: str) -> None:
    module = importlib.import_module(f"transformers.models.{model_type}.modeling_{model_type}")
    found = getattr(module, classes)
    always = set(found._keep_in_fp32_modules_strict or ())
    in_half = set(found._keep_in_fp32_modules or ())
    assert kept_in_float32(model_type, "bfloat16") == sorted(always)
    assert kept_in_float32(model_type, "float16") == sorted(always | in_half)


@pytest.mark.parametrize("model_type", ["never_heard_of", "../../etc/passwd", ""])
def test_models_that_the_library_does_not_know_are_none_of_them(model_type: str) -> None:
    assert kept_in_float32(model_type, "float16") == []
    assert not_streamed(model_type, "float16") is None


def place(model_type: str, dtype: str) -> Plan:
    known = Checkpoint.known(LLAMA)
    assert known is not None
    checkpoint = Checkpoint({**known.config, "model_type": model_type}, known.tensors, "here")
    spec = JobSpec.model_validate(
        {
            "name": "test",
            "model": {"path": "a/b", "dtype": dtype},
            "input": {"path": "x"},
            "parallel": {"strategy": "streamed", "options": {"memory": "12GiB"}},
        }
    )
    return streamed.place(checkpoint, Machines("cpu", 1, 0, None, 24 * 2**30), spec, DEMAND)


def test_streaming_them_is_refused_before_anything_is_queued() -> None:
    with pytest.raises(UsageError, match="e_score_correction_bias in float32 beside bfloat16") as e:
        place("dots1", "bfloat16")
    assert e.value.where == "model.dtype"
    assert place("dots1", "float32").fits
    with pytest.raises(UsageError, match="q_norm"):
        place("afmoe", "float16")
    assert place("afmoe", "bfloat16").fits
    with pytest.raises(UsageError, match="transformers computes"):
        place("hrm_text", "float32")


def test_computed_weights_are_those_that_no_recipe_can_follow() -> None:
    """For every type of model that the library has a conversion for."""
    checked = 0
    for name in CONFIG_MAPPING:
        conversions = get_checkpoint_conversion_mapping(name) or []
        expected = any(
            isinstance(entry, WeightConverter) and not follows(entry) for entry in conversions
        )
        assert _is_computed(name) == expected, name
        checked += expected
    assert checked


def follows(converter: WeightConverter) -> bool:
    try:
        _operations(converter)
    except _Unlike:
        return False
    return True
