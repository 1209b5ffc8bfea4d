"""Whether a checkpoint holds a model, all of it and no other, before a loader fills the gaps with random numbers and
leaves the rest out. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from launcher.plan.dims import Config, Dims, text_config
from launcher.plan.outline import layer_prefix
from launcher.plan.shapes import Shapes, family, parameters

# What transformers renames while loading, from the file's name to the model's. Experts are fused as
# well; their completeness follows from comparing the layers with each other.
RENAMES = {
    "gpt_neox": ("embed_out.", "lm_head."),
    "mixtral": (".block_sparse_moe.", ".mlp."),
}


def missing_tensors(config: Config, dims: Dims, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Names that the model needs and ``shapes`` lacks. Never names one that a valid checkpoint leaves out."""
    missing = _missing_in_layers(config, dims, shapes)
    held = _model_names(config, shapes)
    expected = _expected(config)
    return sorted({*missing, *(name for name in expected if name not in held)})


def surplus_tensors(config: Config, dims: Dims, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Names that are part of a model of a known family, and not of the one that the config describes: of layers beyond
    those that it counts, or a bias beside a weight that has none. What belongs to no module (tables of old checkpoints,
    another head) is harmless."""
    expected = _expected(config)
    prefix = layer_prefix(expected, dims.layers) if expected else None
    if prefix is None:
        return []

    def is_surplus(name: str) -> bool:
        number = name.removeprefix(prefix).partition(".")[0] if name.startswith(prefix) else ""
        beyond = number.isdigit() and int(number) >= dims.layers
        beside = name not in expected and f"{name.rpartition('.')[0]}.weight" in expected
        return beyond or beside

    return sorted(filter(is_surplus, _model_names(config, shapes)))


def wrong_shapes(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """``name: held instead of expected`` for every tensor of a known family that contradicts the config."""
    held = _model_names(config, shapes)
    return [
        f"{name} is {list(held[name])} instead of {list(shape)}"
        for name, shape in _expected(config).items()
        if name in held and held[name] != shape
    ]


def _expected(config: Config) -> Shapes:
    if family(config) is None:
        return {}
    return {name: shape for name, shape in parameters(config).items() if ".experts." not in name}


def _model_names(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Shapes:
    """The tensors by their names in the model: renamed, and with the base model's prefix."""
    kind = family(config)
    if kind is None:
        return dict(shapes)
    old, new = RENAMES.get(str(config["model_type"]), ("", ""))
    named = {name.replace(old, new) if old else name: shape for name, shape in shapes.items()}
    if any(name.startswith(f"{kind.base}.") for name in named):
        return named
    return {n if n.startswith("lm_head") else f"{kind.base}.{n}": s for n, s in named.items()}


def _missing_in_layers(
    config: Config, dims: Dims, shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """Layers that are not there at all, and what a single layer lacks of what its peers hold.

    Layers of one model may differ (dense and sparse, attention and state space; a first layer without
    a norm), so a layer is only called incomplete if it alone holds less than most others of its type.
    """
    prefix = layer_prefix(shapes, dims.layers)
    if prefix is None:
        return []
    held: dict[int, set[str]] = {index: set() for index in range(dims.layers)}
    for name in shapes:
        number, _, rest = name[len(prefix) :].partition(".")
        if name.startswith(prefix) and rest and number.isdigit() and int(number) in held:
            held[int(number)].add(rest)
    if (
        family(config) is not None
    ):  # all layers alike, and all but their experts is expected by name
        experts = {rest for names in held.values() for rest in names if "experts." in rest}
        return [f"{prefix}{i}.{n}" for i, names in held.items() for n in sorted(experts - names)]
    missing = [f"{prefix}{index}.*" for index, names in held.items() if not names]
    if 2 * len(missing) > dims.layers:  # looped models run fewer layers than they count
        return []
    for peers in _peers(config, dims.layers):
        sets = Counter(frozenset(held[index]) for index in peers if held[index])
        usual, times = sets.most_common(1)[0] if sets else (frozenset(), 0)
        for index in peers:
            alone = sets[frozenset(held[index])] == 1 and index > 0
            if alone and 2 * times > len(peers) and held[index] and held[index] < usual:
                missing += [f"{prefix}{index}.{name}" for name in sorted(usual - held[index])]
    return missing


def _peers(config: Config, layers: int) -> list[list[int]]:
    """Layer numbers, together where the config gives them the same type."""
    types = text_config(config).get("layer_types")
    if not isinstance(types, list) or len(types) != layers:
        return [list(range(layers))]
    groups: dict[str, list[int]] = {}
    for index, kind in enumerate(types):
        groups.setdefault(str(kind), []).append(index)
    return list(groups.values())
