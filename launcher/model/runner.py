"""StageRunner: one stage of a model, or a whole one, run step by step over its own KV caches."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch

from launcher.model.attention import Pieces, use_pieces
from launcher.model.cache import Packed, SlotCache, Together
from launcher.model.masks import Mask, Masks, Places
from launcher.model.step import Step
from launcher.plan.plan import Batch

SHORT = 64  # rows of fewer positions attend together, then those of up to twice as many, and so on


class StageRunner:
    """Runs steps on ``model``: a CausalLM of transformers or what ``load_stage`` made of one.

    ``first`` and ``last`` say which ends of the model it has; a whole model has both. Layers may be
    spread over devices by accelerate's hooks.

    Decoding feeds one token per row, each at its own position. Prefill feeds no padding either: rows are
    laid end to end, as many as ``pack`` tokens hold, and the mask keeps them apart. Where the model can,
    attention goes in pieces (see attention.py). The head sees one position per row. The stages of one model must be given the same
    steps in the same order and the same ``pack``; then they compute what the whole model does, bit for bit.
    """

    def __init__(
        self, model: Any, batch: Batch, first: bool = True, last: bool = True, pack: int = 512
    ) -> None:
        self.device = main_device(model)
        self.dtype: torch.dtype = model.dtype
        self._body = model if last else model.get_decoder()
        self._first, self._last, self._pack = first, last, pack
        self._in_pieces = use_pieces(model)
        self._masks = Masks(model.config)
        self._keeps_logits = "logits_to_keep" in inspect.signature(type(model).forward).parameters
        layers = model.config.get_text_config().num_hidden_layers
        self._caches = [
            SlotCache(layers, batch.slots, batch.max_length) for _ in range(batch.groups)
        ]

    def run(self, step: Step, hidden: torch.Tensor | None = None) -> torch.Tensor:
        """Run ``step``; on CUDA this only queues it.

        The first stage takes the step's tokens and no ``hidden``; others what the stage before returned,
        (t, d), on any device: the hidden states of the step's t valid tokens, rows end to end in the step's
        order. Returns such hidden states, or on the last stage logits (b, vocabulary) after each row's
        last valid token; both on ``self.device``.
        """
        assert (hidden is None) == self._first, "the first stage takes tokens, others hidden states"
        cache = self._caches[step.group]
        with torch.inference_mode():
            if step.tokens.shape[1] == 1:
                return self._together(cache, step, hidden)
            return self._packed(cache, step, hidden)

    def close(self) -> None:
        """Give the caches and the model up."""
        self._caches.clear()
        self._body = None

    def _together(self, cache: SlotCache, step: Step, hidden: torch.Tensor | None) -> torch.Tensor:
        """One token per row, all rows at once, in an order that has rows of similar length together."""
        slots, starts = step.slots.tolist(), step.starts.tolist()
        groups = _by_length(slots, starts) if self._in_pieces else [slots]
        cache.gather(groups)
        rows = torch.tensor(cache.rows(slots))
        order = rows.argsort()
        access = Together(step.starts[order])
        positions = self._send(access.positions)[:, None]
        keys = torch.arange(access.length, device=self.device)[None]
        mask = self._masks.build(Places(keys, positions, keys, keys), self.dtype)
        inputs = step.tokens[order] if hidden is None else hidden[order.to(hidden.device)][:, None]
        cache.begin(access)
        options: dict[str, Any] = {}
        if len(groups) > 1:
            lengths = dict(zip(slots, (start + 1 for start in starts), strict=True))
            options["pieces"] = Pieces.of_rows([[lengths[slot] for slot in of] for of in groups])
        result = self._forward(cache, self._send(inputs), positions, mask, options)
        return result[:, -1][self._send(rows)]

    def _packed(self, cache: SlotCache, step: Step, hidden: torch.Tensor | None) -> torch.Tensor:
        """Several tokens per row, rows end to end."""
        results = []
        rows = cache.rows(step.slots.tolist())
        starts, counts = step.starts.tolist(), step.counts.tolist()
        done = 0
        for part in _parts(counts, self._pack):
            access = Packed(rows[part], starts[part], counts[part])
            size = sum(access.counts)
            inputs = (
                _end_to_end(step.tokens[part], access.counts)
                if hidden is None
                else hidden[done : done + size]
            )
            done += size
            results.append(self._pack_of(cache, access, inputs))
        return results[0] if len(results) == 1 else torch.cat(results)

    def _pack_of(self, cache: SlotCache, access: Packed, inputs: torch.Tensor) -> torch.Tensor:
        """One forward pass over some rows."""
        positions = self._send(_ranges(access.starts, access.counts))
        # Without a mask the model makes its own, from what the cache says of its length: with one
        # row that is right for every kind of layer, and lets attention take its fastest path.
        mask: Mask | None = None
        options: dict[str, Any] = {}
        if len(access.rows) > 1:
            mask = self._packed_mask(access, positions)
            if self._in_pieces:
                options["pieces"] = Pieces.of_queries(access.counts, access.lengths)
        ends = self._send(torch.tensor(access.counts).cumsum(0) - 1)
        if self._last and self._keeps_logits:
            options["logits_to_keep"] = ends
        cache.begin(access)
        result = self._forward(cache, self._send(inputs)[None], positions[None], mask, options)[0]
        return result[ends] if self._last and not self._keeps_logits else result

    def _packed_mask(self, access: Packed, positions: torch.Tensor) -> Mask:
        lengths = access.lengths
        query_rows, key_rows = self._send(_numbers(access.counts)), self._send(_numbers(lengths))
        keys = self._send(_ranges([0] * len(lengths), lengths))
        places = Places(query_rows[None], positions[None], key_rows[None], keys[None])
        return self._masks.build(places, self.dtype)

    def _forward(
        self,
        cache: SlotCache,
        inputs: torch.Tensor,
        positions: torch.Tensor,
        mask: Mask | None,
        options: dict[str, Any],
    ) -> torch.Tensor:
        """Hidden states (b, q, d), or on the last stage logits (b, q, vocabulary). ``inputs`` are
        tokens (b, q) or hidden states (b, q, d)."""
        output = self._body(
            **{"input_ids" if self._first else "inputs_embeds": inputs},
            position_ids=positions,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            **options,
        )
        result: torch.Tensor = output.logits if self._last else output.last_hidden_state
        return result

    def _send(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device, non_blocking=True)


def main_device(model: Any) -> torch.device:
    """Where a model takes its input: the device of its first layers that are not spilled."""
    spread = getattr(model, "hf_device_map", None) or {}
    devices = [place for place in spread.values() if place not in ("cpu", "disk")]
    if devices:
        return (
            torch.device("cuda", devices[0])
            if isinstance(devices[0], int)
            else torch.device(devices[0])
        )
    return torch.device("cpu") if spread else model.device


def _by_length(slots: list[int], lengths: list[int]) -> list[list[int]]:
    """Slots whose lengths need the same number of doublings of SHORT, the short ones first."""
    groups: dict[int, list[int]] = {}
    for slot, length in zip(slots, lengths, strict=True):
        groups.setdefault((length // SHORT).bit_length(), []).append(slot)
    return [groups[size] for size in sorted(groups)]


def _parts(counts: list[int], most: int) -> Iterator[slice]:
    """Neighbours that hold at most ``most`` tokens together, or one row that holds more."""
    first, held = 0, 0
    for row, count in enumerate(counts):
        if row > first and held + count > most:
            yield slice(first, row)
            first, held = row, 0
        held += count
    yield slice(first, len(counts))


def _end_to_end(tokens: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """The valid tokens of every row, one row after the other."""
    return torch.cat([row[:count] for row, count in zip(tokens, counts, strict=True)])


def _ranges(starts: list[int], counts: list[int]) -> torch.Tensor:
    """start, start + 1 ... of every row, end to end."""
    return torch.cat(
        [torch.arange(start, start + count) for start, count in zip(starts, counts, strict=True)]
    )


def _numbers(counts: list[int]) -> torch.Tensor:
    """The number of its row for every place, end to end."""
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
