"""StreamedStepModel: a model larger than memory, run block by block while its weights come from the checkpoint.

A sweep goes once over all blocks. In each, every step that waits is run before the block's weights are let
go, so reading the model once serves all groups.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from launcher.measure.device import timer
from launcher.measure.spans import Recorder
from launcher.model.head import log_probabilities
from launcher.model.held import weights_bytes
from launcher.model.pages import Pages
from launcher.model.reader import Reader
from launcher.model.recipe import Recipe
from launcher.model.runner import StageRunner
from launcher.model.sampling import outcome
from launcher.model.skeleton import Skeleton
from launcher.model.spill import Spill
from launcher.model.step import Step
from launcher.model.weight_files import WeightFiles


class Embedding:
    """Tokens to hidden states. Only the rows of the tokens at hand are read: they are few, and never read ahead."""

    def __init__(self, skeleton: Skeleton, recipe: Recipe, files: WeightFiles) -> None:
        self._module, self._files, self._device = skeleton.embedding, files, skeleton.device
        (self._source,), self._recipe = recipe.sources, recipe
        self._module.padding_idx = None  # a row that is not trained; here rows are renumbered

    def run(self, step: Step) -> torch.Tensor:
        """(t, d) for the step's t valid tokens, rows end to end."""
        known, places = step.valid_tokens().unique(return_inverse=True)
        rows = self._files.rows(self._source, known.tolist(), self._recipe.shape[1])
        weight = rows.to(self._device, self._recipe.dtype)
        self._module.weight = torch.nn.Parameter(weight, requires_grad=False)
        with torch.inference_mode():
            hidden: torch.Tensor = self._module(places.to(self._device))
        return hidden


class LayerBlock:
    """Some layers; the caches of groups that are spilled come and go with each step."""

    def __init__(self, runner: StageRunner, number: int, spill: Spill | None, kept: int) -> None:
        self._runner, self._number, self._spill, self._kept = runner, number, spill, kept

    def run(self, step: Step, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states of the step's tokens, (t, d), behind these layers."""
        return self._runner.run(step, hidden)

    def cache(self, group: int) -> AbstractContextManager[None] | None:
        """A context in which the group's cache is there, None if it always is."""
        if self._spill is None or group < self._kept:
            return None
        return self._spill.brought(self._number, group, self._runner.cache(group))

    def held(self) -> dict[str, float]:
        return self._runner.held()

    def close(self) -> None:
        self._runner.close()


class HeadBlock:
    """What is behind the layers. It holds the logits of ``most`` tokens at once where a step asks for probabilities."""

    def __init__(self, model: Any, most: int) -> None:
        self._model, self._most = model, most

    def run(self, step: Step, hidden: torch.Tensor) -> torch.Tensor:
        """What ``step`` yields: tokens (b,) or log-probabilities (n,)."""
        if step.scoring is not None:
            return log_probabilities(self._logits, hidden, step.scoring, self._most)
        ends = (step.counts.cumsum(0) - 1).to(hidden.device)
        with torch.inference_mode():
            return outcome(self._logits(hidden[ends]), step)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(n, vocabulary) for (n, d)."""
        output = self._model(inputs_embeds=hidden[:, None], use_cache=False)
        found: torch.Tensor = output.logits[:, -1]
        return found

    def cache(self, group: int) -> None:
        """It has none."""

    def held(self) -> dict[str, float]:
        return {"weights_bytes": weights_bytes([self._model]), "kv_bytes": 0}

    def close(self) -> None:
        self._model = None


@dataclass(frozen=True)
class Parts:
    """What a sweep goes through. ``streamed`` says of each block whether the reader brings its weights."""

    embedding: Embedding
    blocks: list[LayerBlock | HeadBlock]
    streamed: list[bool]
    files: WeightFiles
    reader: Reader | Pages | None
    spill: Spill | None


class StreamedStepModel:
    """Runs the steps of all groups in one sweep over ``parts``. ``on_progress`` is called after each step
    in each block."""

    def __init__(self, parts: Parts, device: torch.device, depth: int, recorder: Recorder) -> None:
        self.depth = depth
        self.on_progress: Callable[[], None] = lambda: None
        self._parts, self._recorder = parts, recorder
        self._timer = timer(recorder, device)
        self._waiting: list[Step] = []
        self._finished: deque[torch.Tensor] = deque()
        self._error: Exception | None = None
        self._steps = 0

    def launch(self, step: Step) -> None:
        """Have ``step`` take part in the next sweep."""
        self._waiting.append(step)

    def collect(self) -> torch.Tensor:
        """What the oldest step yields that was not collected yet. Raises WeightsError or LauncherError when
        files can't be read or written any more."""
        if self._error:
            raise self._error
        if not self._finished:
            try:
                self._sweep()
            except Exception as error:
                self._error = error  # half a sweep can't be gone on with
                raise
        return self._finished.popleft()

    def figures(self) -> dict[str, float]:
        """Bytes of weights that were read, and the seconds in which that was done; bytes that are held, those of weights
        on their way included."""
        parts = self._parts
        found = {
            "weights_read_bytes": float(parts.files.bytes_read),
            "weights_read_s": parts.files.seconds,
            "weights_bytes": parts.reader.held if parts.reader else 0,
            "kv_bytes": parts.spill.held if parts.spill else 0,
        }
        for block in parts.blocks:
            for name, size in block.held().items():
                found[name] += size
        return found

    def close(self) -> None:
        """Give up what was taken: thread, files, caches, weights."""
        self._timer.close()
        parts = self._parts
        if parts.reader:
            parts.reader.close()
        if parts.spill:
            parts.spill.close()
        for block in parts.blocks:
            block.close()
        parts.files.close()

    def _sweep(self) -> None:
        steps, self._waiting = self._waiting, []
        flights = [_Flight(self._steps + number, step) for number, step in enumerate(steps)]
        self._steps += len(steps)
        for flight in flights:
            flight.hidden = self._parts.embedding.run(flight.step)
            self.on_progress()
        for block, streamed in zip(self._parts.blocks, self._parts.streamed, strict=True):
            with self._weights(streamed):
                for group, own in itertools.groupby(flights, lambda flight: flight.step.group):
                    with self._cache(block, group):
                        for flight in own:
                            self._run(block, flight)
                            self.on_progress()
        self._finished.extend(flight.hidden.to("cpu") for flight in flights)
        self._timer.poll()

    def _run(self, block: LayerBlock | HeadBlock, flight: _Flight) -> None:
        step = flight.step
        with self._timer.span(step.kind, 0, step.group, flight.number):
            flight.hidden = block.run(step, flight.hidden)

    @contextmanager
    def _weights(self, streamed: bool) -> Iterator[None]:
        reader = self._parts.reader
        if not streamed or reader is None:
            yield
            return
        with self._recorder.span("weights"):
            reader.take()
        try:
            yield
        finally:
            with self._recorder.span("weights"):
                reader.release()

    @contextmanager
    def _cache(self, block: LayerBlock | HeadBlock, group: int) -> Iterator[None]:
        """The group's cache in place; moving it is a transfer."""
        context = block.cache(group)
        if context is None:
            yield
            return
        with self._recorder.span("transfer", 0, group):
            context.__enter__()
        yield
        with self._recorder.span("transfer", 0, group):
            context.__exit__(None, None, None)


@dataclass
class _Flight:
    """A step on its way through the blocks: hidden states (t, d), at the end what it yields."""

    number: int
    step: Step
    hidden: torch.Tensor = field(default_factory=lambda: torch.empty(0))
