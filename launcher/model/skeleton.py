"""Skeleton: a CausalLM of transformers without weights, taken apart into blocks that can run one after the other.

A block is some consecutive layers, as a model of the same class that shares the skeleton's modules: giving
the skeleton's layer its weights gives them to the block. What a block needs beside its layers is told in stage.py.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from launcher.job.spec import ModelSpec
from launcher.model.direct import empty_model
from launcher.model.stage import (
    check_ends,
    cut_config,
    decoder_of,
    layers_of,
    name_of,
    norm_of,
    shallow,
    unsplittable,
)
from launcher.plan.splittable import can_split


class Skeleton:
    """The model of ``spec`` in ``dtype``: parameters on the meta device, buffers that no checkpoint holds (rotary
    tables) real and on ``device``.

    Raises PreflightError for a model that can't be taken apart, or that keeps some weights in float32.
    """

    def __init__(self, spec: ModelSpec, dtype: str, total: int, device: torch.device) -> None:
        self.device = device
        self.model = empty_model(spec, dtype, device)
        if reason := can_split(self.model.config.to_dict(), self.model.state_dict()):
            raise unsplittable(self.model.config, reason)
        self._decoder = decoder_of(self.model)
        self._decoder_name = name_of(self.model, self._decoder)
        self._layers_name, self.layers = layers_of(self._decoder, total)
        norm, head = norm_of(self._decoder, self._layers_name), self.model.get_output_embeddings()
        if norm is None or head is None or "." in self._decoder_name:
            raise unsplittable(self.model.config, "its final norm or its head can't be found")
        self._norm_name = name_of(self._decoder, norm)
        self.embedding = self.model.get_input_embeddings()
        self.embedding_prefix = name_of(self.model, self.embedding)
        self.head_prefixes = (name_of(self.model, norm), name_of(self.model, head))
        prefix = name_of(self.model, getattr(self._decoder, self._layers_name))
        self.layer_prefixes = [f"{prefix}.{number}" for number in range(total)]
        _, decoder = self._twin([])
        setattr(decoder, self._norm_name, nn.Identity())
        check_ends(decoder, self._layers_name, self.model.dtype, device)

    def block(self, first: int, last: int) -> Any:
        """Layers ``first`` to ``last``, both included, which take hidden states and give such: for StageRunner."""
        model, decoder = self._twin(self.layers[first : last + 1])
        setattr(decoder, self._norm_name, nn.Identity())
        decoder.config = model.config = copy.deepcopy(self._decoder.config)
        cut_config(decoder.config, first, last)
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

    def _twin(self, layers: list[nn.Module]) -> tuple[Any, Any]:
        """A model with these layers and its decoder, which share all other modules with the skeleton."""
        model, decoder = shallow(self.model), shallow(self._decoder)
        setattr(decoder, self._layers_name, nn.ModuleList(layers))
        setattr(model, self._decoder_name, decoder)
        model.hf_device_map = {"": self.device.index if self.device.type == "cuda" else "cpu"}
        return model, decoder
