"""Loading a model onto one device: each parameter is read straight into the memory where it stays.

transformers' loader maps files into memory, from where bytes are copied one page fault at a time, with more of the
file read than is asked for, and holds fused weights twice. This reads a rank's own bytes, in the order in which
they lie in the files; of a parameter that is a DTensor this rank's part (part.py). Where a model has to be loaded
otherwise, transformers does it.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from launcher import logs
from launcher.job.spec import ModelSpec
from launcher.model.part import Part, load_part
from launcher.model.recipe import NotEndToEnd, Recipe, recipes
from launcher.model.weight_files import WeightFiles
from launcher.model.weights import Loading, attention_of, load_config, load_model, settled
from launcher.plan.checkpoint import Checkpoint

READERS = 2  # threads: one waits for the disk while the other one fills fresh memory


def load(spec: ModelSpec, loading: Loading, kind: Any = None) -> Any:
    """What ``load_model`` gives, and raises what it does; read directly where all of it goes to one device. A parameter
    that ``kind`` makes a DTensor is a plain tensor then: this rank's part."""
    places = set((loading.device_map or {"": "cpu"}).values())
    path = Path(spec.path)
    if len(places) > 1 or "disk" in places or not path.is_dir():
        return load_model(spec, loading, kind)
    checkpoint = Checkpoint.read(path)
    device = torch.device(places.pop())
    try:
        model = empty_model(spec, loading.dtype, device, kind)
        found = recipes(model, checkpoint)
    except NotEndToEnd as why:
        logs.get_logger().info("transformers loads this model: %s", why)
        return load_model(spec, loading, kind)
    names = [source.tensor.file for recipe in found.values() for source in recipe.sources]
    shared = any(map(Part.of, model.state_dict(keep_vars=True).values()))
    files = WeightFiles(path, names, ahead=not shared)
    try:
        _read(model, found, files, device)
    finally:
        files.close()
    return model


def empty_model(spec: ModelSpec, dtype: str, device: torch.device, kind: Any = None) -> Any:
    """The CausalLM of ``spec``, or a ``kind`` of it: parameters on the meta device, buffers that no checkpoint holds
    (rotary tables) real and on ``device``. Raises NotEndToEnd where some weights stay in float32."""
    config = load_config(spec)
    options = {"dtype": getattr(torch, dtype), "attn_implementation": attention_of(spec)}
    with torch.device("meta"):
        if kind is not None:
            model = kind._from_config(config, **options)
        else:
            trusted = spec.trust_remote_code
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trusted, **options)
    kept = set(model._keep_in_fp32_modules_strict or ())
    if dtype == "float16":
        kept |= set(model._keep_in_fp32_modules or ())
    if kept and dtype != "float32":
        raise NotEndToEnd(
            f"models of type {config.model_type} keep {', '.join(sorted(kept))} in float32",
            where="model.dtype",
            fix="set model.dtype to float32, or use strategy sequential",
        )
    _fill_buffers(model, device)
    return settled(model, spec)


def _fill_buffers(model: Any, device: torch.device) -> None:
    """Make the buffers that no checkpoint holds, by the class's own initialisation, as from_pretrained does.

    It runs on the modules that have such buffers; their parameters are on the meta device and stay there.
    """
    held = model.state_dict().keys()
    for prefix, module in model.named_modules():
        own = [
            name
            for name, buffer in module._buffers.items()
            if buffer is not None and (f"{prefix}.{name}" if prefix else name) not in held
        ]
        for name in own:
            module._buffers[name] = torch.empty_like(module._buffers[name], device=device)
        if own:
            for parameter in module.parameters(recurse=False):
                parameter._is_hf_initialized = True  # it is read: draw nothing
            with torch.no_grad():
                model._init_weights(module)


def _read(
    model: Any, found: Mapping[str, Recipe], files: WeightFiles, device: torch.device
) -> None:
    """Give ``model`` its weights, in the order of the files; tied ones once."""
    targets: dict[int, list[tuple[Any, str]]] = {}
    recipe_of: dict[int, Recipe] = {}
    state = model.state_dict(keep_vars=True)
    for key, recipe in found.items():
        parent, _, name = key.rpartition(".")
        targets.setdefault(id(state[key]), []).append((model.get_submodule(parent), name))
        recipe_of[id(state[key])] = recipe

    parts = {id(held): Part.of(held) for held in state.values()}

    def fill(identity: int) -> None:
        recipe, part = recipe_of[identity], parts[identity]
        found = load_part(files, recipe, part, device) if part else files.load(recipe, device)
        value = nn.Parameter(found, requires_grad=False)
        for module, name in targets[identity]:
            put(module, name, value)

    def place(identity: int) -> tuple[str, int]:
        first = recipe_of[identity].sources[0].tensor
        return first.file, first.begin

    with ThreadPoolExecutor(READERS) as pool:
        for _ in pool.map(fill, sorted(recipe_of, key=place)):
            pass


def put(module: nn.Module, name: str, value: nn.Parameter) -> None:
    """Make ``value`` the module's parameter of that name, or its buffer if it is one."""
    if name in module._parameters:
        module._parameters[name] = value
    else:
        module._buffers[name] = value.data
