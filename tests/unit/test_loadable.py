"""Models that no rank could load are refused by the plan; what transformers loads is not."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

from launcher.errors import PreflightError
from launcher.plan import loadable
from launcher.plan.loadable import check_loadable
from launcher.plan.shapes import FAMILIES

OWN = {"model_type": "newcomer", "auto_map": {"AutoModelForCausalLM": "modeling.Model"}}


def refusal(config: dict[str, Any], trusted: bool = False) -> str | None:
    try:
        check_loadable(config, "config.json", trusted=trusted)
    except PreflightError as error:
        return str(error)
    return None


def test_types_are_told_apart_as_transformers_does() -> None:
    decoders = [{"model_type": kind, "is_decoder": True} for kind in CONFIG_MAPPING]
    loads = {config["model_type"] for config in decoders if not refusal(config)}
    assert loads == set(CAUSAL) - {"bloom"}  # whose distances are refused
    assert set(FAMILIES) <= loads


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (OWN, "model.trust_remote_code: true"),
        ({"model_type": "newcomer"}, "no causal language model of model_type newcomer"),
        ({"model_type": "t5", "architectures": ["T5Model"]}, "no causal language model"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "but an encoder"),
        ({"model_type": "roberta"}, "but an encoder"),
    ],
)
def test_what_no_rank_could_load_is_refused(config: dict[str, Any], says: str) -> None:
    assert says in (refusal(config) or "")


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "llama", "architectures": ["LLaMAForCausalLM"]},
        {"model_type": "gpt2", "architectures": ["GPT2DoubleHeadsModel"], "auto_map": {"x": "y"}},
        {"model_type": "bert", "architectures": ["BertLMHeadModel"]},
        {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]},
    ],
)
def test_what_it_loads_is_not(config: dict[str, Any]) -> None:
    assert refusal(config) is None


def test_nothing_is_known_of_trusted_code_and_without_the_tables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert refusal(OWN, trusted=True) is None
    monkeypatch.setattr(loadable, "_tables", dict)
    assert refusal(OWN) is None


def test_distances_that_are_taken_from_a_mask_of_one_length() -> None:
    for config in ({"model_type": "bloom"}, {"model_type": "falcon", "alibi": True}):
        with pytest.raises(PreflightError, match="alibi"):
            check_loadable(config, "config.json", trusted=False)
    check_loadable({"model_type": "falcon", "alibi": False}, "config.json", trusted=False)
