"""A model as a tree of modules with their bytes: what placement cuts. No torch.

A decoder layer is a leaf: it is never split, so nothing below it needs the model's own names (which
differ from the checkpoint's where transformers fuses experts while loading).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from launcher.plan.dims import Config, Dims, text_config
from launcher.plan.shapes import Family, family, is_tied, parameters

# What a base model is called inside its CausalLM class, for checkpoints that leave the prefix away.
BASES = {"h": "transformer", "blocks": "transformer"}
EMBEDDING = re.compile(r"embed|wte|wpe|word_emb|tok_emb")
Part = Callable[[str, tuple[int, ...]], tuple[int, ...]]  # of a tensor's name and shape
HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output_layer|score)$")


@dataclass(frozen=True)
class Module:
    """A module and its bytes; ``name`` is the model's own, "" the whole model. ``layer`` is the number
    of a decoder layer."""

    name: str
    weights: int
    buffers: int = 0
    children: tuple[Module, ...] = ()
    layer: int | None = None

    @property
    def size(self) -> int:
        return self.weights + self.buffers

    def walk(self) -> Iterator[Module]:
        """This module and all below it, parents first, in the order in which they are registered."""
        yield self
        for child in self.children:
            yield from child.walk()

    def leaves(self) -> list[Module]:
        return self._leaves

    @cached_property  # a plan asks hundreds of times
    def _leaves(self) -> list[Module]:
        return [module for module in self.walk() if not module.children]


@dataclass(frozen=True)
class Outline:
    """The tree, and what placement has to know of it."""

    root: Module
    tied: tuple[tuple[str, ...], ...]  # modules that share one tensor; the first one holds it
    classes: Mapping[str, str | None]  # class name -> module; None: every decoder layer
    mean_leaf: (
        int  # bytes of the modules that hold tensors themselves, inside of layers too, on average
    )
    head: str  # the module that makes logits

    @property
    def layers(self) -> list[Module]:
        return [module for module in self.root.leaves() if module.layer is not None]


def outline(
    config: Config,
    shapes: Mapping[str, tuple[int, ...]],
    width: int,
    part: Part = lambda _, shape: shape,
) -> Outline:
    """The outline of a model whose elements take ``width`` bytes each.

    ``shapes`` are the tensors of its checkpoint; for a known family those of its class are taken. Of each
    tensor ``part`` says what is held. Raises ValueError where no decoder layers can be told from the names.
    """
    known = family(config)
    if known is not None:
        shapes = parameters(config)
    shapes = {name: part(name, shape) for name, shape in shapes.items()}
    if known is not None:
        return _known(config, known, shapes, width)
    return _guessed(config, shapes, width)


def layer_prefix(names: Iterable[str], layers: int) -> str | None:
    """What stands before the number of a decoder layer, such as ``model.layers.``; None if nothing does."""
    numbers: dict[str, set[int]] = {}
    for name in names:
        for match in re.finditer(r"(?<=\.)(\d+)\.|^(\d+)\.", name):
            numbers.setdefault(name[: match.start()], set()).add(int(match.group(1) or match[2]))
    counted = {p: sum(n < layers for n in found) for p, found in numbers.items()}

    def rank(prefix: str) -> tuple[bool, int, int, str]:
        other = bool(re.search(r"vis(ion|ual)|audio|encoder", prefix))
        # The outermost of those with the most layers: experts are numbered too, inside of a layer.
        return other, -counted[prefix], prefix.count("."), prefix

    return min(counted, key=rank, default=None)


def _known(
    config: Config, kind: Family, shapes: Mapping[str, tuple[int, ...]], width: int
) -> Outline:
    dims = Dims.of(config)
    base, embedding = kind.base, f"{kind.base}.{kind.embed}"
    sizes = {name: math.prod(shape) * width for name, shape in shapes.items()}
    rotary = int(dims.head_dim * _rotary_share(config, kind.rotary_share)) // 2
    # inv_freq and its original: float32 whatever the model's dtype is.
    tables = _kinds_of_layers(config, dims.layers) if kind.rotary_by_kind else 1
    buffers = {
        f"{base}.rotary_emb": 2 * 4 * rotary * tables,
        embedding: width * kind.scaled_embedding,
    }
    order = [
        embedding,
        *(f"{base}.{name}" for name in kind.silent),
        *(f"{base}.layers.{index}" for index in range(dims.layers)),
        f"{base}.{kind.norm}",
        f"{base}.rotary_emb",
        "lm_head",
    ]
    return Outline(
        root=_tree(_gather(sizes, order, f"{base}.layers."), buffers, f"{base}.layers."),
        tied=((embedding, "lm_head"),) if is_tied(config, kind.tied) else (),
        classes={kind.layer_class: None, kind.model_class: base},
        mean_leaf=_mean_leaf(sizes, buffers),
        head="lm_head",
    )


def _guessed(config: Config, shapes: Mapping[str, tuple[int, ...]], width: int) -> Outline:
    """From the names in the checkpoint alone: embeddings before the layers, everything else behind."""
    prefix = layer_prefix(shapes, Dims.of(config).layers)
    if prefix is None:
        raise ValueError("the tensors' names show no numbered decoder layers")
    container = prefix[:-1]
    if "." not in container:
        base = BASES.get(container, "model")
        shapes = {n if HEAD.search(_parent(n)) else f"{base}.{n}": s for n, s in shapes.items()}
        container, prefix = f"{base}.{container}", f"{base}.{prefix}"
    base = container.rpartition(".")[0]
    sizes = {name: math.prod(shape) * width for name, shape in shapes.items()}
    outside = list(dict.fromkeys(_parent(n) for n in sizes if not n.startswith(prefix)))
    heads = [name for name in outside if HEAD.search(name)]
    embeddings = [name for name in outside if EMBEDDING.search(name) and name not in heads]
    layers = sorted({int(n[len(prefix) :].split(".")[0]) for n in sizes if n.startswith(prefix)})
    rotary = [f"{base}.rotary_emb"] if _has_rope(config) else []
    head = heads[0] if heads else "lm_head"
    order = [
        *embeddings,
        *(f"{prefix}{index}" for index in layers),
        *(name for name in outside if name not in (*embeddings, *heads)),
        *rotary,
        *(heads or [head]),
    ]
    stem = re.split(r"For[A-Z]|LMHead", str((config.get("architectures") or ["?"])[0]))[0]
    guesses = dict.fromkeys(f"{stem}{end}" for end in ("DecoderLayer", "Layer", "Block"))
    return Outline(
        root=_tree(_gather(sizes, order, prefix), {}, prefix),
        tied=((embeddings[0], head),) if embeddings and not heads else (),
        classes={**guesses, f"{stem}Model": base},
        mean_leaf=_mean_leaf(sizes, {}),
        head=head,
    )


def _gather(sizes: Mapping[str, int], order: list[str], prefix: str) -> dict[str, int]:
    """Bytes of each module in ``order``; what is inside of a decoder layer counts as the layer's."""
    gathered = dict.fromkeys(order, 0)
    for name, size in sizes.items():
        if name.startswith(prefix):
            gathered[prefix + name[len(prefix) :].split(".")[0]] += size
        else:
            gathered[_parent(name)] += size
    return gathered


def _tree(weights: Mapping[str, int], buffers: Mapping[str, int], prefix: str) -> Module:
    def build(name: str, below: list[str]) -> Module:
        depth = len(name.split(".")) + 1 if name else 1
        parts: dict[str, list[str]] = {}
        for leaf in below:
            if leaf != name:
                parts.setdefault(".".join(leaf.split(".")[:depth]), []).append(leaf)
        children = tuple(build(part, leaves) for part, leaves in parts.items())
        number = name.removeprefix(prefix)
        return Module(
            name=name,
            weights=weights.get(name, 0) + sum(child.weights for child in children),
            buffers=buffers.get(name, 0) + sum(child.buffers for child in children),
            children=children,
            layer=int(number) if name.startswith(prefix) and number.isdigit() else None,
        )

    return build("", list(weights))


def _mean_leaf(sizes: Mapping[str, int], buffers: Mapping[str, int]) -> int:
    modules: dict[str, int] = {name: size for name, size in buffers.items() if size}
    for name, size in sizes.items():
        modules[_parent(name)] = modules.get(_parent(name), 0) + size
    inner = {_parent(name) for name in modules}
    while more := {_parent(name) for name in inner if name} - inner:
        inner |= more
    leaves = [size for name, size in modules.items() if name not in inner]
    return int(sum(leaves) / max(len(leaves), 1))


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _has_rope(config: Config) -> bool:
    text = text_config(config)
    return any(text.get(key) for key in ("rope_theta", "rope_parameters", "rope_scaling"))


def _rotary_share(config: Config, default: float) -> float:
    rope: Any = config.get("rope_parameters")
    places = (config, rope if isinstance(rope, Mapping) else {})
    for place in places:
        for key in ("partial_rotary_factor", "rotary_pct"):
            if isinstance(place.get(key), (int, float)):
                return float(place[key])
    return default


def _kinds_of_layers(config: Config, layers: int) -> int:
    """Of Gemma 3, whose older configs say but that every so many layers one sees all that came before."""
    if types := config.get("layer_types"):
        return len(set(types))
    pattern = config.get("sliding_window_pattern", 6)
    return 2 if 1 < pattern <= layers else 1
