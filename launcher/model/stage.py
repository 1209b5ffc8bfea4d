"""One stage of a CausalLM of transformers: consecutive layers, loaded without reading the others.

The stage is a model of the same class with fewer layers, so its code, key renames and attention are the
library's own. What has to be changed is little, but all of it goes wrong in silence if it is left out:

- ``layer_idx`` of every layer is its place in a cache. A stage's cache has only its own layers, so the
  numbers are made to begin at 0; with the original ones a plain cache makes room for layers that are never
  filled, and masks, whose sizes are asked of layer 0, leave out the past: decoding is wrong on all
  families, prefill is not. (A SlotCache has no such layers and raises IndexError.)
- ``config.layer_types`` is read by place while the layers run. It is cut like the layers; otherwise a stage
  attends with the kinds of the first stage's layers (sliding or full), which short prompts don't show.
- The final norm belongs to the last stage alone. It keeps shapes and magnitudes, so a stage that has it
  too runs without an error and says something else.
- An embedding may scale (Gemma), and some models shift or scale again whatever they are fed. Hidden states
  must enter and leave a stage unchanged, which is tried on every stage that is loaded.
- Tied weights: the last stage keeps the embedding as the head's tensor. Elsewhere the tie is cut, or the
  loader would look for its other end.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from launcher.errors import PreflightError
from launcher.job.spec import ModelSpec
from launcher.model.direct import load
from launcher.model.sharding import Sharding
from launcher.model.weights import Loading, load_config, load_model
from launcher.plan.splittable import can_split

Item = TypeVar("Item")

PER_LAYER = ("layer_types", "mlp_layer_types")  # of a config: read by a layer's place


def load_stage(
    spec: ModelSpec,
    dtype: str,
    layers: tuple[int, int],
    total: int,
    device: int | str = "cpu",
    sharding: Sharding | None = None,
) -> Any:
    """Layers ``layers[0]`` to ``layers[1]``, both included, of the CausalLM of ``spec.path``, in eval mode.

    ``total`` is the number of the model's layers, ``device`` "cpu" or a GPU's index. The stage with layer 0
    has the embedding, the one with the last layer has norm and head. With ``sharding`` it is this rank's
    shard of all that. Only the rank's own part is read. For StageRunner, which knows how to feed it.
    Raises what ``load_model`` does, for the stage's own weights; PreflightError if the model can't be split so.
    """
    part = _Part(layers[0], layers[1], total)
    config = load_config(spec)
    kind = _stage_class(_class_of(config), part, sharding)
    loading = Loading(dtype, {"": device})
    # What the page cache of one host has for all ranks is mapped by transformers' loader, which copies less.
    shared = sharding is not None and not sharding.group.spread
    model = load_model(spec, loading, kind) if shared else load(spec, loading, kind)
    if sharding is not None:
        sharding.settle(model)
    if len(part) < total:
        _renumber(model, part)
    return model


@dataclass(frozen=True)
class _Part:
    """Layers ``first`` to ``last`` of ``total``."""

    first: int
    last: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.first <= self.last < self.total:
            raise ValueError(f"no layers {self.first} to {self.last} in a model of {self.total}")

    def __len__(self) -> int:
        return self.last + 1 - self.first

    def of(self, items: Sequence[Item]) -> list[Item]:
        """Those of one item per layer of the model that are this part's."""
        return list(items[self.first : self.last + 1])


def _class_of(config: Any) -> type:
    from transformers import AutoModelForCausalLM

    found = AutoModelForCausalLM._model_mapping.get(type(config), None)
    if not isinstance(found, type):
        raise unsplittable(config, "transformers has no one CausalLM class for it")
    return found


def _stage_class(whole: type, part: _Part, sharding: Sharding | None) -> type:
    """``whole`` without the layers of other stages and other ranks' shards; they are gone before anything is read.

    Name and module are the original's: by them the library finds how to rename a checkpoint's keys.
    """

    def build(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        whole.__init__(self, config, *args, **kwargs)  # type: ignore[misc]
        if len(part) < part.total:
            self.layers_name = _prune(self, part)
        if sharding is not None:
            sharding.cut(self)

    return type(whole.__name__, (whole,), {"__init__": build, "__module__": whole.__module__})


def _prune(model: Any, part: _Part) -> str:
    """Take away what other stages have. Layers keep their names, which are those in the checkpoint; the result is that
    of their list, which can't be told by its length any more."""
    if reason := can_split(model.config.to_dict(), model.state_dict()):
        raise unsplittable(model.config, reason)
    decoder = decoder_of(model)
    name, layers = layers_of(decoder, part.total)
    own: set[Any] = {module for layer in part.of(layers) for module in layer.modules()}
    for module in own:
        index = getattr(module, "layer_idx", None)
        if isinstance(index, int):
            module.layer_idx = index - part.first
    others = [number for number in range(part.total) if layers[number] not in own]
    prefix = name_of(model, getattr(decoder, name))
    gone = [f"{prefix}.{number}" for number in others] + _drop_ends(model, decoder, name, part)
    for number in others:
        del getattr(decoder, name)._modules[str(number)]
    _forget(model, gone)
    return name


def _renumber(model: Any, part: _Part) -> None:
    """While loading, layers had their names in the checkpoint; code that runs numbers them from 0."""
    decoder, name = decoder_of(model), model.layers_name
    setattr(decoder, name, nn.ModuleList(getattr(decoder, name)._modules.values()))
    cut_config(decoder.config, part.first, part.last)
    check_ends(decoder, name, model.dtype, model.device)


def _forget(model: Any, gone: list[str]) -> None:
    """Have the loader neither tie nor miss the modules that are ``gone``."""
    held = model.state_dict().keys()
    model.all_tied_weights_keys = {
        target: source
        for target, source in model.all_tied_weights_keys.items()
        if target in held and source in held
    }
    base = f"{model.base_model_prefix}."  # not there in a checkpoint of the base model alone
    model._keys_to_ignore_on_load_unexpected |= {
        rf"^({re.escape(base)})?{re.escape(name.removeprefix(base))}\." for name in gone
    }


def _drop_ends(model: Any, decoder: Any, layers: str, part: _Part) -> list[str]:
    """Replace embedding, norm and head where they are another stage's; returns their names."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = bool(model.all_tied_weights_keys)
    is_first, is_last = part.first == 0, part.last == part.total - 1
    dropped = []
    if not is_first and not (is_last and tied):
        dropped.append(name_of(model, embedding))
    if not is_last:
        norm = norm_of(decoder, layers)
        if norm is None or head is None:
            raise unsplittable(decoder.config, "its final norm or its head can't be found")
        dropped += [name_of(model, norm), name_of(model, head)]
    for name in dropped:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, nn.Identity())
    return dropped


def cut_config(config: Any, first: int, last: int) -> None:
    """Make ``config`` that of layers ``first`` to ``last``, both included."""
    for name in PER_LAYER:
        if kinds := getattr(config, name, None):
            setattr(config, name, kinds[first : last + 1])
    config.num_hidden_layers = last + 1 - first


def decoder_of(model: Any) -> Any:
    """The module that has embedding, layers and norm."""
    decoder = model.get_decoder()
    if decoder is model or not hasattr(decoder, "config"):
        raise unsplittable(model.config, "its decoder can't be found")
    return decoder


def layers_of(decoder: Any, total: int) -> tuple[str, list[nn.Module]]:
    """Name and members of the list of layers."""
    found = [
        name
        for name, child in decoder.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == total
    ]
    if len(found) != 1:
        raise unsplittable(decoder.config, f"it has no one list of {total} layers")
    return found[0], list(getattr(decoder, found[0]))


def norm_of(decoder: Any, layers: str) -> nn.Module | None:
    """The norm behind the layers."""
    children = dict(decoder.named_children())
    behind = list(children)[list(children).index(layers) + 1 :]
    norms = [children[name] for name in behind if "norm" in type(children[name]).__name__.lower()]
    return norms[0] if len(norms) == 1 else None


def shallow(module: Any) -> Any:
    """A module with the same parts, of which some can be exchanged without changing ``module``."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin


def name_of(model: nn.Module, part: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is part)


def check_ends(decoder: Any, layers: str, dtype: torch.dtype, device: torch.device) -> None:
    """Hidden states must enter the first layer as they are given and leave as the last one makes them: without its
    ``layers``, the name of their list, the decoder does nothing, or what its norm does. Raises PreflightError."""
    kept, norm = getattr(decoder, layers), norm_of(decoder, layers) or nn.Identity()
    width = decoder.config.hidden_size
    given = torch.linspace(-1, 1, width, dtype=dtype, device=device)[None, None]
    setattr(decoder, layers, nn.ModuleList())
    with torch.inference_mode():
        found = decoder(inputs_embeds=given, use_cache=False).last_hidden_state
        same = torch.equal(found, norm(given))
    setattr(decoder, layers, kept)
    if not same:
        raise unsplittable(decoder.config, "it changes hidden states outside of its layers")


def unsplittable(config: Any, why: str) -> PreflightError:
    return PreflightError(
        f"models of type {config.model_type} can't be split into stages: {why}",
        where="parallel.strategy",
        fix="use strategy sequential",
    )
