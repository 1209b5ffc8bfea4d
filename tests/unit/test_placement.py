"""Device maps: equal to accelerate's, the field's golden figures, and maps written by hand."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import infer_auto_device_map, init_empty_weights
from accelerate.utils import compute_module_sizes, get_balanced_memory
from transformers import AutoConfig, AutoModelForCausalLM

from launcher.errors import UsageError
from launcher.plan.checkpoint import Checkpoint
from launcher.plan.outline import Outline, outline
from launcher.plan.placement import (
    Device,
    balanced_memory,
    check_device_map,
    find_device,
    infer_device_map,
    unsplit_modules,
)

GIB = 2**30
COMMON: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_attention_heads": 8,
    "pad_token_id": 0,
}
GROUPED = {"num_key_value_heads": 4}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {**GROUPED, "tie_word_embeddings": True},
    "qwen3": {**GROUPED, "head_dim": 32},
    "mistral": {**GROUPED},
    "mixtral": {**GROUPED, "num_local_experts": 4},
    "gemma2": {**GROUPED, "head_dim": 32},
    "gemma3_text": {**GROUPED, "head_dim": 32},
    "gpt_neox": {},
    "phi3": {**GROUPED},
    "gpt2": {"n_embd": 128, "n_head": 8},  # no shapes of it are known: outlined by names alone
    "olmo2": {**GROUPED},
}
SIZES = [(6, 1000, torch.float32), (4, 40_000, torch.bfloat16), (1, 60_000, torch.float16)]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """accelerate warns of every GPU that is not here."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.filterwarnings("ignore:Current model requires")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("layers", "vocab", "dtype"), SIZES)
def test_equal_to_accelerate(kind: str, layers: int, vocab: int, dtype: torch.dtype) -> None:
    changes = COMMON | {"num_hidden_layers": layers, "vocab_size": vocab} | KINDS[kind]
    config = AutoConfig.for_model(kind, **changes)
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.tie_weights()
    tree = outline_of(model, config, dtype.itemsize)
    whole = list(model._no_split_modules)
    by_name_only = kind in ("gpt2", "olmo2")
    if not by_name_only:
        assert tree.root.size == compute_module_sizes(model)[""]
    rng = random.Random(f"{kind}{layers}")
    for _ in range(25):
        memory = draw_memory(rng, tree.root.size)
        for rule in ("sequential", "balanced", "balanced_low_0"):
            theirs, ours = dict(memory), dict(memory)
            if rule != "sequential":
                low_zero = rule == "balanced_low_0"
                theirs = get_balanced_memory(
                    model, theirs, no_split_module_classes=whole, low_zero=low_zero
                )
                ours = balanced_memory(tree, ours, low_zero=low_zero)
            if not by_name_only:  # rotary tables and leaves below the layers differ by some bytes
                assert ours == theirs, (rule, memory)
            expected = infer_auto_device_map(
                model, max_memory=dict(theirs), no_split_module_classes=whole
            )
            found = infer_device_map(tree, theirs)
            if by_name_only:
                assert devices(found, tree) == devices(expected, tree), (rule, memory)
            else:
                assert found == dict(expected), (rule, memory)


def outline_of(model: Any, config: Any, width: int) -> Outline:
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    saved = json.loads(config.to_json_string()) | {"architectures": [type(model).__name__]}
    return outline(saved, shapes, width)


def devices(device_map: dict[str, Device], tree: Outline) -> list[Device | None]:
    return [find_device(device_map, leaf.name) for leaf in tree.root.leaves() if leaf.weights]


def draw_memory(rng: random.Random, size: int) -> dict[Device, int]:
    gpus = rng.randint(0, 5)
    memory: dict[Device, int] = {gpu: int(size * rng.uniform(0, 1.5) / gpus) for gpu in range(gpus)}
    if not gpus or rng.random() < 0.6:
        memory["cpu"] = int(size * rng.uniform(0, 0.8))
    return memory


def test_outline_equals_the_module_tree() -> None:
    """Every name that we may put into a device map is one that the model has, and all layers are there."""
    for kind, changes in KINDS.items():
        sizes = COMMON | {"num_hidden_layers": 3, "vocab_size": 99}
        config = AutoConfig.for_model(kind, **(sizes | changes))
        with init_empty_weights():
            model = AutoModelForCausalLM.from_config(config)
        model.tie_weights()
        tree = outline_of(model, config, 4)
        modules = dict(model.named_modules())
        assert {m.name for m in tree.root.walk()} <= set(modules)
        classes = {type(modules[layer.name]).__name__ for layer in tree.layers}
        assert classes == set(model._no_split_modules)
        assert tree.root.weights == sum(p.numel() * 4 for p in model.parameters())
        assert classes <= set(tree.classes)


def llama70b(width: int, name: str = "meta-llama/Llama-2-70b-hf") -> Outline:
    checkpoint = Checkpoint.known(name)
    assert checkpoint is not None
    return checkpoint.outline(width)


def layers_by_device(tree: Outline, device_map: dict[str, Device]) -> dict[Device, tuple[int, int]]:
    found: dict[Device, list[int]] = {}
    for layer in tree.layers:
        device = find_device(device_map, layer.name)
        assert device is not None
        assert layer.layer is not None
        found.setdefault(device, []).append(layer.layer)
    return {device: (numbers[0], numbers[-1]) for device, numbers in found.items()}


def gpus(size: int, count: int = 4) -> dict[Device, int]:
    return dict.fromkeys(range(count), size * GIB)


def test_golden_70b_float32_on_four_gpus_of_70_gib() -> None:
    tree = llama70b(4)
    found = infer_device_map(tree, gpus(70))
    assert layers_by_device(tree, found) == {0: (0, 19), 1: (20, 40), 2: (41, 61), 3: (62, 79)}
    assert found["model.embed_tokens"] == 0
    assert found["model.norm"] == found["lm_head"] == 3


def test_golden_70b_bfloat16_leaves_two_gpus_empty() -> None:
    tree = llama70b(2)
    at_70 = layers_by_device(tree, infer_device_map(tree, gpus(70)))
    assert at_70 == {0: (0, 41), 1: (42, 79)}
    at_78 = layers_by_device(tree, infer_device_map(tree, gpus(78)))
    assert at_78 == {0: (0, 46), 1: (47, 79)}
    large_head = llama70b(2, "meta-llama/Llama-3.1-70B")
    at_78 = layers_by_device(large_head, infer_device_map(large_head, gpus(78)))
    assert at_78 == {0: (0, 45), 1: (46, 79)}  # 46 / 34 / 0 / 0


def test_balanced_gives_the_gpus_alike() -> None:
    tree = llama70b(2)
    found = infer_device_map(tree, balanced_memory(tree, gpus(78)))
    counts = [last - first + 1 for first, last in layers_by_device(tree, found).values()]
    assert len(counts) == 4
    assert max(counts) - min(counts) <= 3
    low = infer_device_map(tree, balanced_memory(tree, gpus(78), low_zero=True))
    assert 0 not in layers_by_device(tree, low)


def test_spills_to_cpu_then_disk() -> None:
    tree = llama70b(2)
    found = layers_by_device(tree, infer_device_map(tree, {0: 40 * GIB, "cpu": 40 * GIB}))
    assert list(found) == [0, "cpu", "disk"]
    assert found["disk"][1] == 79


def test_whole_model_on_one_device_is_one_entry() -> None:
    assert infer_device_map(llama70b(2), gpus(200)) == {"": 0}


def test_model_class_in_no_split_stays_whole() -> None:
    tree = llama70b(2)
    unsplit = unsplit_modules(tree, ["LlamaDecoderLayer", "LlamaModel"], "here")
    assert unsplit == ["model"]
    found = infer_device_map(tree, {0: 10 * GIB, 1: 140 * GIB}, unsplit)
    assert found == {"": 1}


@pytest.mark.parametrize(
    ("name", "hint"),
    [("LlamaDecoderLayr", "did you mean LlamaDecoderLayer"), ("Linear", "use LlamaDecoderLayer")],
)
def test_unknown_no_split_class(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        unsplit_modules(llama70b(2), [name], "parallel.options.no_split")


BY_HAND: dict[str, Device] = {
    "model.embed_tokens": 0,
    **{f"model.layers.{index}": index // 40 for index in range(80)},
    "model.norm": 1,
    "lm_head": 1,
}


def test_map_by_hand_is_filled_in() -> None:
    found = check_device_map(llama70b(2), BY_HAND, "here")
    assert found == BY_HAND | {"model.rotary_emb": 0}
    assert check_device_map(llama70b(2), {"": 3}, "here") == {"": 3}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model.layer.3": 0}, "did you mean model.layers.3"),
        ({"model.layers.3.mlp": 0}, "place model.layers.3"),
        ({"model.layers.80": 0}, "no module 'model.layers.80'"),
        ({"model.layers": 0}, "placed twice"),
        ({"": 0}, "placed twice"),
        ({"model.layers.7": None, "model.layers.8": None}, "no device is given for model.layers.7"),
        ({"lm_head": None}, "no device is given for lm_head"),
    ],
)
def test_map_by_hand_with_a_mistake(change: dict[str, Device | None], said: str) -> None:
    given = {name: device for name, device in (BY_HAND | change).items() if device is not None}
    with pytest.raises(UsageError) as caught:
        check_device_map(llama70b(2), given, "parallel.options.device_map")
    assert said in str(caught.value)
    assert "parallel.options.device_map" in str(caught.value)


def test_tied_head_goes_with_the_embedding() -> None:
    config = {
        "model_type": "qwen2",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "vocab_size": 100,
        "tie_word_embeddings": True,
    }
    tree = outline(config, {}, 4)
    given: dict[str, Device] = {"model.embed_tokens": 0, "model.layers": 1, "model.norm": 1}
    assert check_device_map(tree, given, "here")["lm_head"] == 0
    with pytest.raises(UsageError, match="share one tensor"):
        check_device_map(tree, {**given, "lm_head": 1}, "here")
