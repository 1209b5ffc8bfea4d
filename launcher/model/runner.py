"""StageRunner: one stage of a model, or a whole one, run step by step over its own KV caches."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch

from launcher.model.attention import FA2, attending, use_pieces
from launcher.model.cache import Packed, SlotCache, Together
from launcher.model.head import Head, log_probabilities
from launcher.model.held import weights_bytes
from launcher.model.masks import Mask, Masks, Places, Queries
from launcher.model.ragged import Ragged, ranges
from launcher.model.step import Step
from launcher.plan.memory import PACK
from launcher.plan.plan import Batch


class StageRunner:
    """Runs steps on ``model``: a CausalLM of transformers or what ``load_stage`` made of one.

    ``first`` and ``last`` say which ends of the model it has; a whole model has both. Layers may be
    spread over devices by accelerate's hooks.

    Tokens are laid end to end, without padding, and each row attends to its own part of the cache (see ragged.py and
    attention.py). A model that can't attend so is run in two passes where a step has rows of one token and
    others: rows of one token side by side; and others end to end, as many as ``pack`` tokens hold, with a mask that
    keeps them apart. The head sees one position per row. The stages of one model must be given the same
    steps in the same order and the same ``pack``; then they compute what the whole model does, bit for bit.
    """

    def __init__(
        self, model: Any, batch: Batch, first: bool = True, last: bool = True, pack: int = PACK
    ) -> None:
        self.device = main_device(model)
        self.dtype: torch.dtype = model.dtype
        self._body = model if last else model.get_decoder()
        self._first, self._last, self._pack = first, last, pack
        self._most = batch.slots  # logits that are held at once: as many as drawing takes
        self._in_pieces = use_pieces(model)
        self._flash = model.config._attn_implementation == FA2
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
        last valid token, or the log-probabilities (n,) that it asks for; all on ``self.device``.
        """
        assert (hidden is None) == self._first, "the first stage takes tokens, others hidden states"
        if self._last and step.scoring is not None:
            behind = self._headless.run(step, hidden)
            return log_probabilities(self._head.logits, behind, step.scoring, self._most)
        cache = self._caches[step.group]
        inputs = step.valid_tokens() if hidden is None else hidden
        with torch.inference_mode():
            if self._in_pieces:
                return self._ragged(cache, step, inputs)
            return self._apart(cache, step, inputs)

    def cache(self, group: int) -> SlotCache:
        """The KV cache of a group."""
        return self._caches[group]

    def held(self) -> dict[str, float]:
        """Bytes of its weights and caches."""
        kv_bytes = sum(cache.nbytes for cache in self._caches)
        return {"weights_bytes": weights_bytes([self._body]), "kv_bytes": kv_bytes}

    def close(self) -> None:
        """Give the caches and the model up."""
        self._caches.clear()
        self._body = None
        for made in ("_headless", "_head"):
            self.__dict__.pop(made, None)

    @cached_property
    def _headless(self) -> StageRunner:
        """This last stage, with the same caches, as one that is followed by its head."""
        twin = copy.copy(self)
        twin._body, twin._last = self._body.get_decoder(), False
        return twin

    @cached_property
    def _head(self) -> Head:
        return Head(self._body)

    def _ragged(self, cache: SlotCache, step: Step, inputs: torch.Tensor) -> torch.Tensor:
        """All rows in one pass. ``inputs``: the step's tokens (t,) or hidden states (t, d)."""
        flash = self._flash and step.scoring is None  # whose kernels know no branches
        layout = Ragged.of(step, cache, self._masks, flash)
        queries = Queries.of(layout.places(), step, self.device)
        tokens = layout.tokens()
        moved = bool((tokens.diff() != 1).any())
        if moved:
            inputs = inputs[tokens.to(inputs.device)]
        mask = layout.mask(self._masks, queries, self.dtype)
        ends = self._send(layout.ends()) if self._last else None
        cache.begin(layout.access)
        sees = queries.positions + 1 if flash else None
        with attending(replace(layout.pieces, ends=sees)):
            result = self._forward(
                cache, self._send(inputs)[None], queries.positions[None], mask, ends
            )
        if moved and not self._last:
            result = result[:, self._send(tokens.argsort())]
        return result[0]

    def _apart(self, cache: SlotCache, step: Step, inputs: torch.Tensor) -> torch.Tensor:
        """Rows of one token in one pass, others in other ones. ``inputs`` as for ``_ragged``."""
        single = step.counts == 1
        if step.scoring is not None or not single.any():
            return self._packed(cache, step, inputs)
        if single.all():
            return self._together(cache, step, inputs)
        of_single = single.repeat_interleave(step.counts)
        results = []
        for run, rows, tokens in (
            (self._together, single, of_single),
            (self._packed, ~single, ~of_single),
        ):
            some = replace(
                step, **{name: getattr(step, name)[rows] for name in ("slots", "starts", "counts")}
            )
            results.append(run(cache, some, inputs[tokens.to(inputs.device)]))
        mine = single if self._last else of_single
        order = torch.cat([mine.nonzero()[:, 0], (~mine).nonzero()[:, 0]]).argsort()
        return torch.cat(results)[self._send(order)]

    def _together(self, cache: SlotCache, step: Step, inputs: torch.Tensor) -> torch.Tensor:
        """One token per row, all rows at once."""
        slots = step.slots.tolist()
        cache.gather([slots])
        rows = torch.tensor(cache.rows(slots))
        order = rows.argsort()
        access = Together(step.starts[order])
        positions = self._send(access.positions)[:, None]
        keys = torch.arange(access.length, device=self.device)[None]
        mask = self._masks.build(Places(keys, positions, keys, keys), self.dtype)
        cache.begin(access)
        inputs = self._send(inputs[order.to(inputs.device)])[:, None]
        return self._forward(cache, inputs, positions, mask)[:, -1][self._send(rows)]

    def _packed(self, cache: SlotCache, step: Step, inputs: torch.Tensor) -> torch.Tensor:
        """Several tokens per row, rows end to end."""
        results = []
        rows = cache.rows(step.slots.tolist())
        starts, counts = step.starts.tolist(), step.counts.tolist()
        queries = Queries.of(ranges(starts, counts), step, self.device)
        done = 0
        for part in _parts(counts, self._pack):
            access = Packed(rows[part], starts[part], counts[part])
            own = slice(done, done + sum(access.counts))
            results.append(self._pack_of(cache, access, queries.part(own), inputs[own]))
            done = own.stop
        return results[0] if len(results) == 1 else torch.cat(results)

    def _pack_of(
        self, cache: SlotCache, access: Packed, queries: Queries, inputs: torch.Tensor
    ) -> torch.Tensor:
        """One forward pass over some rows."""
        # Without a mask the model makes its own, from what the cache says of its length: with one
        # row that is right for every kind of layer, and lets attention take its fastest path.
        several = len(access.rows) > 1 or queries.bases is not None
        mask = self._packed_mask(access, queries) if several else None
        ends = self._send(torch.tensor(access.counts).cumsum(0) - 1) if self._last else None
        cache.begin(access)
        inputs, positions = self._send(inputs)[None], queries.positions[None]
        return self._forward(cache, inputs, positions, mask, ends)[0]

    def _packed_mask(self, access: Packed, queries: Queries) -> Mask:
        lengths = access.lengths
        query_rows, key_rows = self._send(_numbers(access.counts)), self._send(_numbers(lengths))
        keys = queries.keys(self._send(ranges([0] * len(lengths), lengths)))
        if queries.bases is not None:
            keys = keys[None]
        places = Places(query_rows[None], queries.positions[None], key_rows[None], keys)
        return self._masks.build(places, self.dtype)

    def _forward(
        self,
        cache: SlotCache,
        inputs: torch.Tensor,
        positions: torch.Tensor,
        mask: Mask | None,
        ends: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states (b, q, d), or on the last stage logits (b, q, vocabulary), of ``ends`` alone where they are
        given. ``inputs`` are tokens (b, q) or hidden states (b, q, d)."""
        keeps = ends is not None and self._keeps_logits
        output = self._body(
            **{"input_ids" if self._first else "inputs_embeds": inputs},
            position_ids=positions,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            **({"logits_to_keep": ends} if keeps else {}),
        )
        result: torch.Tensor = output.logits if self._last else output.last_hidden_state
        return result if ends is None or self._keeps_logits else result[:, ends]

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


def _parts(counts: list[int], most: int) -> Iterator[slice]:
    """Neighbours that hold at most ``most`` tokens together, or one row that holds more."""
    first, held = 0, 0
    for row, count in enumerate(counts):
        if row > first and held + count > most:
            yield slice(first, row)
            first, held = row, 0
        held += count
    yield slice(first, len(counts))


def _numbers(counts: list[int]) -> torch.Tensor:
    """The number of its row for every place, end to end."""
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
