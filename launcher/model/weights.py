"""Loading a checkpoint into a transformers model, such that wrong weights are never used in silence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from launcher import logs
from launcher.errors import PreflightError, WeightsError
from launcher.job.spec import ModelSpec
from launcher.model.attention import use_flash
from launcher.plan.checkpoint import Checkpoint


@dataclass(frozen=True)
class Loading:
    """How a model is to be held: ``dtype`` as the plan resolved it; ``device_map`` names modules' devices, with
    "cpu" and "disk" among them, None for a plain load onto the CPU. ``offload_dir`` is for weights on disk
    that transformers converts while loading, such as fused experts; others stay in the checkpoint."""

    dtype: str
    device_map: dict[str, int | str] | None = None
    offload_dir: str | None = None


def load_config(spec: ModelSpec) -> Any:
    """The transformers config of ``spec.path``. Raises PreflightError when there is no such model.

    It does not say what attends: a config that could might name a kernel of the hub, which transformers fetches and runs.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            spec.path, revision=spec.revision, trust_remote_code=spec.trust_remote_code
        )
    except (OSError, ValueError, ImportError) as error:
        raise _refused(spec.path, error) from error
    config._attn_implementation = config._experts_implementation = None
    return config


def load_model(spec: ModelSpec, loading: Loading, kind: Any = None) -> Any:
    """The CausalLM of ``spec.path``, in eval mode, layers where ``loading`` says.

    ``kind`` is the class to load it as, None for the one that its config names. Only safetensors are read:
    other formats can run code. Raises WeightsError when a weight is missing, has another shape than the
    model's, or would be left out of a module that has weights; PreflightError when there is no such model
    or it can't attend as the spec says.
    """
    from transformers import AutoModelForCausalLM

    if Path(spec.path).is_dir():
        Checkpoint.read(Path(spec.path))  # names the file of what is truncated or missing
    config, places = load_config(spec), set((loading.device_map or {}).values())
    auto: Any = kind or AutoModelForCausalLM  # its types don't know of output_loading_info
    try:
        model, info = auto.from_pretrained(
            spec.path,
            config=config,
            revision=spec.revision,
            trust_remote_code=spec.trust_remote_code,
            dtype=getattr(torch, loading.dtype) if loading.dtype != "auto" else "auto",
            attn_implementation=attention_of(spec),
            # accelerate knows no device map that is all CPU; such a model is loaded plainly.
            device_map=None if places <= {"cpu"} else loading.device_map,
            offload_folder=loading.offload_dir,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, SafetensorError, RuntimeError, ValueError, ImportError) as error:
        raise _not_offloaded(loading, error) or _refused(spec.path, error) from error
    check_loaded(spec.path, model, info)
    return settled(model, spec)


def settled(model: Any, spec: ModelSpec) -> Any:
    """``model`` in eval mode, attending as ``spec`` says where it can. Raises PreflightError where flash can't be had."""
    if spec.attention == "flash_attention_2":
        use_flash(model)
        return model.eval()
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
        # sdpa leaves the caps out, in older versions without a word.
        model.set_attn_implementation("eager")
    used = model.config._attn_implementation
    if used != spec.attention:
        logs.get_logger().warning("this model attends with %s, not %s", used, spec.attention)
    return model.eval()


def attention_of(spec: ModelSpec) -> str | None:
    """None lets the model choose: sdpa, or eager where the model has something that sdpa lacks."""
    return "eager" if spec.attention == "eager" else None


def check_loaded(path: str, model: Any, info: dict[str, Any]) -> None:
    """Raises WeightsError where ``info``, as transformers' loader gives it, says that a weight of ``model`` is
    missing, has another shape, or would be left out."""
    missing = info["missing_keys"]
    mismatched = [key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"]]
    unexpected = [key for key in info["unexpected_keys"] if _belongs(model, key)]
    for keys, what in (
        (missing, "the checkpoint lacks weights of the model"),
        (mismatched, "weights have other shapes than the model's"),
        (unexpected, "the checkpoint has weights that the model would leave out"),
    ):
        if keys:
            raise WeightsError(
                f"{what}: {_some(keys)}",
                where=path,
                cause="a shard or an entry of the index is missing, or config.json is another model's",
                fix="fetch the checkpoint again",
            )
    if info["error_msgs"]:
        raise WeightsError(_some(info["error_msgs"]), where=path, fix="fetch the checkpoint again")
    if info["unexpected_keys"]:
        logs.get_logger().warning(
            "%s: not part of the model, left out: %s", path, _some(info["unexpected_keys"])
        )


def _belongs(model: Any, key: str) -> bool:
    """Whether ``key`` names a tensor of a module that the model has and that has weights: a bias, say."""
    parent = key.rpartition(".")[0]
    try:
        return isinstance(getattr(model.get_submodule(parent), "weight", None), torch.Tensor)
    except AttributeError:
        return False


def _not_offloaded(loading: Loading, error: Exception) -> PreflightError | None:
    """What is wrong with the folder for weights on disk, where ``error`` is about it."""
    place, folder = getattr(error, "filename", None), Path(loading.offload_dir or "")
    if not (isinstance(error, OSError) and isinstance(place, str) and loading.offload_dir):
        return None
    if not (folder.is_relative_to(place) or Path(place).is_relative_to(folder)):
        return None
    return PreflightError(
        f"weights can't be kept on disk: {error.strerror}",
        where=place,
        cause="parallel.options.offload_dir can't be made or written on this host",
        fix="set it to a folder on a disk of the node that you may write to",
    )


def _refused(path: str, error: Exception) -> PreflightError:
    wrong = isinstance(error, SafetensorError | RuntimeError)
    kind = WeightsError if wrong else PreflightError
    return kind(
        f"can't load the model: {error}",
        where=path,
        cause="a file of the checkpoint is corrupt" if wrong else None,
        fix="fetch the checkpoint again" if wrong else "check model.path and model.revision",
    )


def _some(keys: Iterable[str]) -> str:
    ordered = sorted(keys)
    more = f" and {len(ordered) - 5} more" if len(ordered) > 5 else ""
    return ", ".join(ordered[:5]) + more
