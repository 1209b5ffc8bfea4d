"""One stage of a CausalLM of transformers: consecutive layers, loaded without reading the others."""

from __future__ import annotations

from typing import Any

from launcher.job.spec import ModelSpec


def load_stage(
    spec: ModelSpec, dtype: str, layers: tuple[int, int], total: int, device: int | str = "cpu"
) -> Any:
    """Layers ``layers[0]`` to ``layers[1]`` (both included) of the CausalLM of ``spec.path``, which has
    ``total``, in eval mode on ``device`` ("cpu" or a GPU's index)."""
    raise NotImplementedError
