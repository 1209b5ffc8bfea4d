"""LocalStepModel: a whole transformers model in this process, on one device or spread over several."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch

from launcher.measure.spans import Recorder
from launcher.model.cache import Access, Packed, SlotCache, Together
from launcher.model.masks import Mask, Masks, Places
from launcher.model.sampling import draw
from launcher.model.step import Step
from launcher.plan.plan import Batch


class LocalStepModel:
    """Runs steps on ``model``, a CausalLM of transformers; layers may be spread by accelerate's hooks.

    Decoding feeds one token per row, right-aligned to nothing: every row has its own position. Prefill
    feeds no padding either: rows are laid end to end, as many as ``pack`` tokens hold, and the mask
    keeps them apart. ``lm_head`` sees one position per row.
    """

    depth = 1

    def __init__(self, model: Any, batch: Batch, recorder: Recorder, pack: int = 256) -> None:
        self._model = model
        self._recorder = recorder
        self._pack = pack
        self._masks = Masks(model.config)
        self._device = main_device(model)
        self._keeps_logits = "logits_to_keep" in inspect.signature(type(model).forward).parameters
        layers = model.config.get_text_config().num_hidden_layers
        self._caches = [
            SlotCache(layers, batch.slots, batch.max_length) for _ in range(batch.groups)
        ]
        self._finished: deque[_Tokens] = deque()
        self._steps = 0

    def launch(self, step: Step) -> None:
        """Run ``step``; on CUDA this only queues it."""
        cache = self._caches[step.group]
        with (
            self._recorder.span(step.kind, 0, step.group, self._steps),
            torch.inference_mode(),
        ):
            if step.tokens.shape[1] == 1:
                tokens = self._together(cache, step)
            else:
                tokens = draw(self._packed(cache, step), step.sampling)
            self._finished.append(_Tokens(tokens))
        self._steps += 1

    def collect(self) -> torch.Tensor:
        """The tokens of the oldest step that was not collected yet."""
        return self._finished.popleft().wait()

    def close(self) -> None:
        """Give the caches and the model up."""
        self._caches.clear()
        self._finished.clear()
        self._model = None

    def _together(self, cache: SlotCache, step: Step) -> torch.Tensor:
        """One token per row, all rows at once."""
        rows = torch.tensor(cache.gather(step.slots.tolist()))
        order = rows.argsort()
        access = Together(step.starts[order])
        positions = self._send(access.positions)[:, None]
        keys = torch.arange(access.length, device=self._device)[None]
        mask = self._masks.build(Places(keys, positions, keys, keys), self._model.dtype)
        tokens = self._send(step.tokens[order])
        logits = self._forward(cache, access, tokens, positions, mask)[:, -1]
        return draw(logits[self._send(rows)], step.sampling)

    def _packed(self, cache: SlotCache, step: Step) -> torch.Tensor:
        """Logits (b, vocabulary) after the last token of each row."""
        logits = []
        rows = cache.rows(step.slots.tolist())
        starts, counts = step.starts.tolist(), step.counts.tolist()
        for part in _parts(counts, self._pack):
            access = Packed(rows[part], starts[part], counts[part])
            tokens = torch.cat(
                [row[:count] for row, count in zip(step.tokens[part], access.counts, strict=True)]
            )
            positions = self._send(_ranges(access.starts, access.counts))
            mask = None if len(access.rows) == 1 else self._packed_mask(access, positions)
            ends = torch.tensor(access.counts).cumsum(0) - 1
            logits.append(
                self._forward(cache, access, self._send(tokens)[None], positions[None], mask, ends)[
                    0
                ]
            )
        return logits[0] if len(logits) == 1 else torch.cat(logits)

    def _packed_mask(self, access: Packed, positions: torch.Tensor) -> Mask:
        lengths = [start + count for start, count in zip(access.starts, access.counts, strict=True)]
        query_rows, key_rows = self._send(_numbers(access.counts)), self._send(_numbers(lengths))
        keys = self._send(_ranges([0] * len(lengths), lengths))
        places = Places(query_rows[None], positions[None], key_rows[None], keys[None])
        return self._masks.build(places, self._model.dtype)

    def _forward(
        self,
        cache: SlotCache,
        access: Access,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        mask: Mask | None,
        keep: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits (b, q, vocabulary), or those of the positions ``keep`` alone.

        Without a mask the model makes its own, from what the cache says of its length: with one row
        that is right for every kind of layer, and lets attention take its fastest path.
        """
        cache.begin(access)
        keep = None if keep is None else self._send(keep)
        extra = {"logits_to_keep": keep} if keep is not None and self._keeps_logits else {}
        logits: torch.Tensor = self._model(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            **extra,
        ).logits
        return logits if keep is None or self._keeps_logits else logits[:, keep]

    def _send(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._device, non_blocking=True)


class _Tokens:
    """Tokens on their way to the CPU; the copy is queued at once, so it waits for no later step."""

    def __init__(self, tokens: torch.Tensor) -> None:
        self._tokens = tokens.to("cpu", non_blocking=True)
        self._arrived = None
        if tokens.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(tokens.device))

    def wait(self) -> torch.Tensor:
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tokens


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


def _ranges(starts: list[int], counts: list[int]) -> torch.Tensor:
    """start, start + 1 ... of every row, end to end."""
    return torch.cat(
        [torch.arange(start, start + count) for start, count in zip(starts, counts, strict=True)]
    )


def _numbers(counts: list[int]) -> torch.Tensor:
    """The number of its row for every place, end to end."""
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
