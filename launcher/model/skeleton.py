"""Skeleton: a CausalLM of transformers without weights, taken apart into blocks that can run one after the other.

A block is some consecutive layers, as a model of the same class that shares the skeleton's modules: giving
the skeleton's layer its weights gives them to the block. What a block needs beside its layers is told in stage.py.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from launcher.errors import PreflightError
from launcher.job.spec import ModelSpec
from launcher.model.stage import (
    PER_LAYER,
    _decoder_of,
    _layers_of,
    _name_of,
    _norm_of,
    _unsplittable,
)
from launcher.model.weights import attention_of, load_config, settled
from launcher.plan.splittable import can_split


class Skeleton:
    """The model of ``spec`` in ``dtype``: parameters on the meta device, buffers that no checkpoint holds (rotary
    tables) real and on ``device``.

    Raises PreflightError for a model that can't be taken apart, or that keeps some weights in float32.
    """

    def __init__(self, spec: ModelSpec, dtype: str, total: int, device: torch.device) -> None:
        self.device = device
        self.model = _empty(spec, dtype, device)
        if reason := can_split(self.model.config.to_dict(), self.model.state_dict()):
            raise _unsplittable(self.model.config, reason)
        self._decoder = _decoder_of(self.model)
        self._decoder_name = _name_of(self.model, self._decoder)
        self._layers_name, self.layers = _layers_of(self._decoder, total)
        norm, head = _norm_of(self._decoder, self._layers_name), self.model.get_output_embeddings()
        if norm is None or head is None or "." in self._decoder_name:
            raise _unsplittable(self.model.config, "its final norm or its head can't be found")
        self._norm_name = _name_of(self._decoder, norm)
        self.embedding = self.model.get_input_embeddings()
        self.embedding_prefix = _name_of(self.model, self.embedding)
        self.head_prefixes = (_name_of(self.model, norm), _name_of(self.model, head))
        prefix = _name_of(self.model, getattr(self._decoder, self._layers_name))
        self.layer_prefixes = [f"{prefix}.{number}" for number in range(total)]
        self._check_ends()

    def block(self, first: int, last: int) -> Any:
        """Layers ``first`` to ``last``, both included, which take hidden states and give such: for StageRunner."""
        model, decoder = self._twin(self.layers[first : last + 1])
        setattr(decoder, self._norm_name, nn.Identity())
        decoder.config = model.config = _cut(self._decoder.config, first, last)
        for number, layer in enumerate(self.layers[first : last + 1]):
            own: list[Any] = list(layer.modules())
            for module in own:
                if isinstance(getattr(module, "layer_idx", None), int):
                    module.layer_idx = number
                if getattr(module, "config", None) is self._decoder.config:
                    module.config = decoder.config
        return model

    def head(self) -> Any:
        """What is behind the layers, as a model that takes their hidden states as ``inputs_embeds``."""
        return self._twin([])[0]

    def _check_ends(self) -> None:
        """Hidden states must enter the first layer as they are given and leave as the last one makes them."""
        _, decoder = self._twin([])
        setattr(decoder, self._norm_name, nn.Identity())
        width = decoder.config.hidden_size
        given = torch.linspace(-1, 1, width, dtype=self.model.dtype, device=self.device)[None, None]
        with torch.inference_mode():
            found = decoder(inputs_embeds=given, use_cache=False).last_hidden_state
            same = torch.equal(found, given)
        if not same:
            raise _unsplittable(self.model.config, "it changes hidden states outside of its layers")

    def _twin(self, layers: list[nn.Module]) -> tuple[Any, Any]:
        """A model with these layers and its decoder, which share all other modules with the skeleton."""
        model, decoder = _shallow(self.model), _shallow(self._decoder)
        setattr(decoder, self._layers_name, nn.ModuleList(layers))
        setattr(model, self._decoder_name, decoder)
        model.hf_device_map = {"": self.device.index if self.device.type == "cuda" else "cpu"}
        return model, decoder


def _shallow(module: Any) -> Any:
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin


def _cut(config: Any, first: int, last: int) -> Any:
    config = copy.deepcopy(config)
    for name in PER_LAYER:
        if kinds := getattr(config, name, None):
            setattr(config, name, kinds[first : last + 1])
    config.num_hidden_layers = last + 1 - first
    return config


def _empty(spec: ModelSpec, dtype: str, device: torch.device) -> Any:
    config = load_config(spec)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config,
            dtype=getattr(torch, dtype),
            attn_implementation=attention_of(spec),
            trust_remote_code=spec.trust_remote_code,
        )
    kept = set(model._keep_in_fp32_modules_strict or ()) | set(model._keep_in_fp32_modules or ())
    if kept and dtype != "float32":
        raise PreflightError(
            f"models of type {config.model_type} keep {', '.join(sorted(kept))} in float32, "
            "which can't be streamed yet",
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
            with torch.no_grad():
                model._init_weights(module)
