"""Turns: when each device of a model that is spread by a device map computes, and when it waits for spilled weights.

Devices take turns within a step, so a span of the whole step would hide that each is idle while another one computes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, SequentialHook
from torch import nn

from launcher.measure.device import Timer, timer
from launcher.measure.spans import Recorder

Place = int | str


class TurnTimer:
    """The timer of a model's steps: a span for each turn of a device, and ``weights`` while spilled ones are brought.

    ``stages`` says which stage each place of the model's ``hf_device_map`` computes as: a GPU by its index, "cpu" or
    "disk". A turn lasts until the next one begins, or the step ends.
    """

    def __init__(self, model: Any, stages: Mapping[Place, int], recorder: Recorder) -> None:
        self._timers: dict[int, Timer] = {
            stage: timer(recorder, torch.device("cuda", place))
            for place, stage in stages.items()
            if isinstance(place, int)
        }
        for stage in stages.values():
            self._timers.setdefault(stage, timer(recorder, torch.device("cpu")))
        self._open = contextlib.ExitStack()
        self._step = ("decode", 0, 0)
        for stage, modules in _turns(model, stages):
            modules[0].register_forward_pre_hook(partial(self._begin, stage))
            for module in modules:
                self._time_spilled(module, stage)

    @contextlib.contextmanager
    def span(self, kind: str, stage: int = 0, group: int = 0, step: int = 0) -> Iterator[None]:
        """Time the block's turns; ``stage`` is what they say of themselves."""
        self._step = kind, group, step
        with contextlib.closing(self._open):
            yield

    def poll(self) -> None:
        """Hand over the spans that are over."""
        for each in self._timers.values():
            each.poll()

    def close(self) -> None:
        """Hand over the rest."""
        for each in self._timers.values():
            each.close()

    def _begin(self, stage: int, *_: Any) -> None:
        self._enter(self._step[0], stage)

    def _enter(self, kind: str, stage: int) -> None:
        self._open.close()
        _, group, step = self._step
        self._open.enter_context(self._timers[stage].span(kind, stage, group, step))

    def _time_spilled(self, module: nn.Module, stage: int) -> None:
        """Where accelerate brings weights for a part of ``module``, have that counted as ``weights``."""
        for part in module.modules():
            hook: Any = getattr(part, "_hf_hook", None)
            if _brings_weights(hook):
                hook.pre_forward = partial(self._bring, stage, hook.pre_forward)

    def _bring(self, stage: int, bring: Callable[..., Any], *given: Any, **options: Any) -> Any:
        self._enter("weights", stage)
        try:
            return bring(*given, **options)
        finally:
            self._enter(self._step[0], stage)


def _turns(model: Any, stages: Mapping[Place, int]) -> list[tuple[int, list[nn.Module]]]:
    """Modules with weights in the order in which they compute, those of one place that follow each other together."""
    found: list[tuple[int, list[nn.Module]]] = []
    for name, place in model.hf_device_map.items():
        module = model.get_submodule(name)
        if next(module.parameters(), None) is None:
            continue
        if not found or found[-1][0] != stages[place]:
            found.append((stages[place], []))
        found[-1][1].append(module)
    return found


def _brings_weights(hook: Any) -> bool:
    if isinstance(hook, SequentialHook):
        return any(_brings_weights(one) for one in hook.hooks)
    return isinstance(hook, AlignDevicesHook) and bool(hook.offload)
