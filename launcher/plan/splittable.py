"""Which models can be cut into stages, told from config and names of tensors. No torch.

What this does not know of, ``launcher.model.stage`` notices when it loads a stage.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from launcher.plan.dims import Config, Dims
from launcher.plan.outline import layer_prefix

KINDS = ("full_attention", "sliding_attention", "chunked_attention")
POSITIONS = re.compile(r"(^|\.)(wpe|embed_positions|position_embeddings?)\.")
STATES = re.compile(r"\.(A_log|conv1d\.weight|time_decay|recurrent_param)$")
_OUTSIDE = "it changes hidden states outside of its layers"
_UNNAMED = (
    "transformers does not say which of its modules are its decoder, its layers and its last norm"
)
# A test tries every type that the library has.
BY_TYPE = {
    **dict.fromkeys(("bloom", "ctrl", "nanochat", "xglm"), _OUTSIDE),
    **dict.fromkeys(
        ("cpmant", "llama4_text", "modernbert-decoder", "openai-gpt", "xlnet"), _UNNAMED
    ),
}


def can_split(config: Config, names: Iterable[str] = ()) -> str | None:
    """None if the model's layers can be cut into stages, else why not: "it ..." or "its ...".

    ``names`` are those of its tensors, if they are known. A config that lacks figures is another's to refuse.
    """
    names = list(names)
    return _by_config(config) or (_by_names(config, names) if names else None)


def _by_config(config: Config) -> str | None:
    if config.get("is_encoder_decoder"):
        return "it has an encoder, whose output every layer of its decoder reads"
    if isinstance(config.get("text_config"), dict):
        return "its language model is a part of a larger one"
    if config.get("num_kv_shared_layers"):
        return "its last layers read the keys and values of earlier ones"
    if other := sorted(set(config.get("layer_types") or ()) - set(KINDS)):
        return f"it has layers that keep no keys and values: {', '.join(other)}"
    if config.get("embedding_multiplier", 1) != 1:
        return "it scales hidden states wherever they enter its layers (embedding_multiplier)"
    return BY_TYPE.get(str(config.get("model_type")))


def _by_names(config: Config, names: list[str]) -> str | None:
    layers = Dims.of(config).layers
    prefix = layer_prefix(names, layers)
    numbers = (
        {name[len(prefix) :].partition(".")[0] for name in names if name.startswith(prefix)}
        if prefix
        else set()
    )
    if missing := [n for n in range(layers) if str(n) not in numbers]:
        return f"its tensors' names show no decoder layer {missing[0]}"
    if found := next(filter(POSITIONS.search, names), None):
        return f"it adds positions to whatever enters its layers ({found})"
    if found := next(filter(STATES.search, names), None):
        return f"it has layers that keep a state in place of keys and values ({found})"
    return None
