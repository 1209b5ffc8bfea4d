"""StepModels of one process: LocalStepModel, a whole transformers model on one device or spread over several, and
what it has in common with others that draw where they compute."""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

import torch

from launcher.measure.device import Timer, timer
from launcher.measure.spans import Recorder
from launcher.model.runner import StageRunner
from launcher.model.sampling import outcome
from launcher.model.step import Step
from launcher.plan.memory import PACK
from launcher.plan.plan import Batch


class Runner(Protocol):
    """What runs a stage, or a whole model: StageRunner, or something in its place."""

    device: torch.device

    def run(self, step: Step, hidden: torch.Tensor | None = None) -> torch.Tensor:
        """Hidden states (t, d) for the next stage; on the last logits (b, vocabulary), or the log-probabilities (n,)
        that the step asks for."""

    def held(self) -> dict[str, float]:
        """``weights_bytes`` and ``kv_bytes``, as far as they are known."""

    def close(self) -> None:
        """Give up what it holds."""


class RunnerStepModel:
    """Runs steps on ``runner``, which has the whole model, and draws in this process."""

    depth = 1

    def __init__(self, runner: Runner, timer: Timer) -> None:
        self._runner, self._timer = runner, timer
        self._finished: deque[Tokens] = deque()
        self._steps = 0

    def launch(self, step: Step) -> None:
        """Run ``step``; on CUDA this only queues it."""
        with (
            self._timer.span(step.kind, 0, step.group, self._steps),
            torch.inference_mode(),
        ):
            self._finished.append(Tokens(outcome(self._runner.run(step), step)))
        self._steps += 1

    def collect(self) -> torch.Tensor:
        """What the oldest step yields that was not collected yet."""
        tokens = self._finished.popleft().wait()
        self._timer.poll()
        return tokens

    def figures(self) -> dict[str, float]:
        """What it holds in memory."""
        return self._runner.held()

    def close(self) -> None:
        """Give the caches and the model up."""
        self._timer.close()
        self._finished.clear()
        self._runner.close()


class LocalStepModel(RunnerStepModel):
    """Runs steps on ``model``, a CausalLM of transformers; layers may be spread by accelerate's hooks."""

    def __init__(self, model: Any, batch: Batch, recorder: Recorder, pack: int = PACK) -> None:
        runner = StageRunner(model, batch, pack=pack)
        super().__init__(runner, timer(recorder, runner.device))


class Tokens:
    """Tokens, or log-probabilities, on their way to the CPU; the copy is queued at once, so it waits for no later step."""

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
