"""Tensor parallelism as far as a plan has to know it: which tensors the ranks of a group share, and what each gets. No torch.

The rules are those of transformers' own plans for tensor parallelism; a test holds them equal for every known
family. What ranks load is decided by the library's plan itself, in launcher/model/sharding.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from launcher.errors import UsageError
from launcher.plan.checkpoint import Checkpoint
from launcher.plan.cuts import cuts_of, why_uncut
from launcher.plan.dims import Config, Dims, text_config
from launcher.plan.shapes import family

MOST = 64  # ranks of a group that anybody would ask for
# Linear layers of which each rank computes a part of the outputs, and those of which it has a part of the inputs.
OUTPUTS = {
    *("q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value"),
    *("gate_proj", "up_proj", "gate_up_proj", "dense_h_to_4h", "w1", "w3"),
    *("embed_tokens", "embed_in", "wte", "lm_head", "embed_out"),
}
INPUTS = {"o_proj", "dense", "down_proj", "dense_4h_to_h", "w2"}
# Families whose projections are fused such that only their outputs together can be told apart: every rank gets
# all of them, and so all heads.
FUSED = ("phi3",)


@dataclass(frozen=True)
class Shards:
    """``count`` ranks share each tensor. ``all_heads``: each of them computes all of the attention, and keeps
    the keys and values of all heads; ``all_outputs``: the MLP's hidden states, too, are whole on each. ``guessed``:
    which tensors the library cuts is not known here."""

    count: int = 1
    all_heads: bool = False
    all_outputs: bool = False
    guessed: bool = False

    @classmethod
    def of(cls, config: Config, dims: Dims, count: int) -> Shards:
        """How ``count`` ranks share a model. Of a family that is not known here the heads are taken to be whole."""
        fused = str(config.get("model_type")) in FUSED
        unknown = family(config) is None
        return cls(count, fused or unknown or heads_are_whole(dims, count), fused, unknown)

    def part(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the first rank's part of a tensor, no rank has more."""
        path = name.split(".")
        end = path.pop() if path[-1] in ("weight", "bias") else ""
        axis = len(shape) - (1 if path[-1] in INPUTS else 2)
        if path[-1] not in OUTPUTS | INPUTS or (path[-1] in INPUTS and end == "bias"):
            return shape
        axis = max(0, axis)
        return (*shape[:axis], -(-shape[axis] // self.count), *shape[axis + 1 :])

    def dims(self, dims: Dims) -> Dims:
        """Of what one rank computes and keeps."""
        mlp = 1 if self.all_outputs else self.count
        dims = replace(dims, mlp_width=-(-dims.mlp_width // mlp))
        if self.all_heads:
            return dims
        return replace(
            dims,
            heads=dims.heads // self.count,
            kv_heads=dims.kv_heads // self.count,
            cached_per_layer=dims.cached_per_layer // self.count,
        )

    def gathered(self, dims: Dims) -> list[int]:
        """Widths of what the ranks put together in each layer; ``dims`` are the whole model's."""
        if self.count == 1 or not self.all_heads:
            return []
        projections = [
            heads * dims.head_dim for heads in (dims.heads, dims.kv_heads, dims.kv_heads)
        ]
        return [sum(projections), 2 * dims.mlp_width] if self.all_outputs else projections

    def notes(self, dims: Dims) -> list[str]:
        """What a person should know of how the heads are shared."""
        if self.count == 1 or not self.all_heads:
            return []
        if self.guessed:
            return [
                "which tensors the ranks share is a guess from their names: this model_type is new here"
            ]
        said = f"each of the {self.count} ranks of a tensor group computes all of the attention and keeps the whole KV cache"
        if heads_are_whole(dims, self.count):
            said += (
                f": {dims.kv_heads} KV heads and {dims.heads} heads can't be shared by {self.count}"
            )
            if good := _divisors(dims.kv_heads, dims.heads):
                said += f", but by {_listed(good)}"
        return [said]


def heads_are_whole(dims: Dims, count: int) -> bool:
    """Whether ``count`` ranks can't share the attention heads, so that each has to have them all."""
    return bool(dims.heads % count or dims.kv_heads % count)


def check_shards(checkpoint: Checkpoint, count: int) -> None:
    """Raises UsageError for a model that ranks can't share, or a degree that does not divide what they would, with those
    that do."""
    if count == 1:
        return
    kind = str(text_config(checkpoint.config).get("model_type"))
    plan = cuts_of(kind)
    if plan is not None and (reason := why_uncut(plan)):
        raise UsageError(
            f"models of type {kind} can't be split by tensors: {reason}",
            where="parallel.tensor",
            fix="take it out, and set parallel.strategy to pipeline or sequential",
        )
    uneven = sorted(width for width in _widths(checkpoint) if width % count)
    if uneven:
        good = _divisors(*_widths(checkpoint))
        raise UsageError(
            f"{count} ranks can't share an MLP that is {uneven[0]} wide",
            where="parallel.tensor",
            fix=f"take {_listed(good)}" if good else "take parallel.stages instead",
        )


def read_again(checkpoint: Checkpoint, nodes: int) -> int:
    """Bytes that a tensor group whose ranks are on ``nodes`` reads beside all of the checkpoint once: each node reads
    all of what is cut by columns."""
    by_columns = sum(
        tensor.nbytes
        for name, tensor in checkpoint.tensors.items()
        if not INPUTS.isdisjoint(name.split(".")[-2:])
    )
    return (nodes - 1) * by_columns


def degrees(checkpoint: Checkpoint) -> list[int]:
    """How many ranks can share the model's layers, up to MOST, without a guess at what they share; 1 is not among them."""
    return _divisors(*_widths(checkpoint)) if family(checkpoint.config) else []


def _widths(checkpoint: Checkpoint) -> set[int]:
    """Of all its MLPs."""
    experts = text_config(checkpoint.config).get("moe_intermediate_size")
    return {checkpoint.dims.intermediate, *([experts] if isinstance(experts, int) else [])}


def _divisors(*numbers: int) -> list[int]:
    return [n for n in range(2, MOST + 1) if not any(number % n for number in numbers)]


def _listed(numbers: list[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} or {last}" if most else last
