"""`backend: tensor_parallel`: one process with a thread and a shard per device, cut and joined by that package.

Version 2.0.0 is its last, of 2023, and its models and its `generate` don't go with today's transformers. What is
used of it is what does: it makes shards of a model, puts exchanges around their modules, and makes those
on GPUs. How tensors are cut is transformers' plan, as for the other backend (sharding.py). Each
shard runs in a StageRunner of its own, for a cache that all of them wrote to would be wrong.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor.placement_types import _StridedShard

from launcher.errors import PreflightError
from launcher.job.spec import ModelSpec
from launcher.measure.device import Timer, timer
from launcher.measure.spans import Recorder
from launcher.model import sharding
from launcher.model.group import GroupTimer
from launcher.model.local import RunnerStepModel
from launcher.model.packed import pack_linears
from launcher.model.runner import StageRunner
from launcher.model.step import Step
from launcher.model.weights import Loading, load_model
from launcher.plan import cuts
from launcher.plan.dims import Dims
from launcher.plan.plan import Plan
from launcher.plan.shards import heads_are_whole

Rule = dict[int, Any]  # argument or result by number: what is done to it


def load_shards(
    spec: ModelSpec, plan: Plan, devices: Sequence[str], recorder: Recorder
) -> RunnerStepModel:
    """The model of ``spec`` with a shard on each of ``devices``, which are all cuda or all cpu.

    The whole checkpoint is read into host memory first. Raises PreflightError without the package, or for a
    model that can't be cut.
    """
    package = _package()
    exchanges = Exchanges(package, len(devices), plan.device)
    model = load_model(spec, Loading(plan.dtype))
    config = package.Config(**_rules(model, exchanges, package), attr_rules={})
    shards = package.TensorParallel(
        model, devices, tensor_parallel_config=config, distributed=False, sharded=False
    ).module_shards
    if plan.device == "cpu":
        for shard in shards:
            _pack(shard)
    runner = ShardsRunner([StageRunner(shard, plan.batch) for shard in shards])
    clock: Timer = timer(recorder, runner.device)
    return RunnerStepModel(runner, GroupTimer(recorder, exchanges) if exchanges.timed else clock)


class ShardsRunner:
    """Runs each step on all shards at once, in threads that stay: what the first one computes is the result."""

    def __init__(self, runners: Sequence[StageRunner]) -> None:
        self.device, self._runners = runners[0].device, runners
        self._steps: list[SimpleQueue[Step | None]] = [SimpleQueue() for _ in runners]
        self._results: SimpleQueue[tuple[int, torch.Tensor | Exception]] = SimpleQueue()
        threads = max(1, torch.get_num_threads() // len(runners))
        for number, runner in enumerate(runners):
            # A daemon: when another shard fails, this one may wait for it in an exchange for ever.
            work = (number, runner, threads)
            threading.Thread(target=self._serve, args=work, daemon=True).start()

    def run(self, step: Step, hidden: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (b, vocabulary) on the first device. Raises what a shard raised, and is of no use then."""
        assert hidden is None, "there is one stage"
        for steps in self._steps:
            steps.put(step)
        found = {}
        for _ in self._steps:
            number, result = self._results.get()
            if isinstance(result, Exception):
                raise result
            found[number] = result
        return found[0]

    def held(self) -> dict[str, float]:
        """Bytes of all shards together."""
        each = [runner.held() for runner in self._runners]
        return {name: sum(held[name] for held in each) for name in each[0]}

    def close(self) -> None:
        """End the threads, and with them the shards."""
        for steps in self._steps:
            steps.put(None)

    def _serve(self, number: int, runner: StageRunner, threads: int) -> None:
        torch.set_num_threads(threads)  # of those that this shard computes with
        if runner.device.type == "cuda":
            torch.cuda.set_device(runner.device)
        while (step := self._steps[number].get()) is not None:
            try:
                self._results.put((number, runner.run(step)))
            except Exception as error:  # noqa: BLE001 - it is raised again where the step came from
                self._results.put((number, error))
        runner.close()


@dataclass
class Exchanges:
    """What the shards' threads do to add up and gather: on GPUs the package's own operations, and on a CPU, where
    the package adds in the order in which threads arrive, sums that come out the same every time."""

    package: ModuleType
    count: int
    device: str
    _spent: float = field(default=0.0, init=False)

    @property
    def timed(self) -> bool:
        """Whether the time is known: on GPUs an exchange is only queued."""
        return self.device == "cpu" and self.count > 1

    def take_spent(self) -> float:
        """Seconds that exchanges took the first shard since this was last asked, waiting for others included."""
        spent, self._spent = self._spent, 0.0
        return spent

    def add_up(self) -> Any:
        """The rule for results of which every shard has a summand."""
        return "sum" if self.device == "cuda" else self._operation(_sum)

    def gather(self) -> Any:
        """The rule for results of which every shard has some columns."""
        return "gather -1" if self.device == "cuda" else self._operation(_columns)

    def _operation(self, join: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def copies(*parts: torch.Tensor) -> list[torch.Tensor]:
            joined = join(*parts)
            return [joined, *(joined.clone() for _ in parts[1:])]

        exchange = self.package.communications.CollectiveOperation(self.count, copies)

        def timed(part: torch.Tensor, rank: int) -> torch.Tensor:
            began = time.perf_counter()
            result: torch.Tensor = exchange(part, rank=rank)
            if rank == 0:
                self._spent += time.perf_counter() - began
            return result

        return timed


def _rules(model: Any, exchanges: Exchanges, package: ModuleType) -> dict[str, dict[str, Any]]:
    """transformers' plan for ``model`` as the package's rules: names by pattern, and what is done to tensors, and
    to what modules are given and return. An embedding is cut by columns, and so is a head that is tied to it."""
    count, actions = exchanges.count, package.state_actions
    styles = sharding.styles_of(
        model, heads_are_whole(Dims.of(model.config.to_dict()), exchanges.count)
    )
    embedding = model.get_input_embeddings()
    add_up, gather, split = {0: exchanges.add_up()}, {0: exchanges.gather()}, {0: "split -1"}
    states: dict[str, Any] = {}
    inputs: dict[str, Rule] = {}
    outputs: dict[str, Rule] = {}
    for name, module in model.named_modules():
        style, pattern = styles.get(name), _pattern(name)
        tied = module is not embedding and _weight(module) is _weight(embedding)
        if style in (cuts.ROWS, *cuts.SPLIT, cuts.EXPERTS) or tied:
            outputs[pattern] = add_up
        elif style in (*cuts.GATHERED, cuts.EMBEDDING):
            outputs[pattern] = gather
        if style in cuts.SPLIT or tied:
            inputs[pattern] = split
        for own, parameter in module._parameters.items():
            if parameter is None or (tied and own == "weight"):
                continue
            of = styles.get(f"{name}.{own}") or style
            if (action := _action(of, own, parameter, count, actions)) is not None:
                states[_pattern(f"{name}.{own}")] = action
    return {"state_rules": states, "input_rules": inputs, "output_rules": outputs}


def _action(style: str | None, own: str, parameter: nn.Parameter, count: int, actions: Any) -> Any:
    """Which part of a parameter a shard has; None where it has all of it."""
    if style == cuts.EMBEDDING:
        return actions.Split(count, dim=1)
    if style in (cuts.ROWS, *cuts.SPLIT) and own == "bias":
        return actions.Scale(count)  # every shard adds it
    placement: Any = sharding.placement_of(style, own, parameter)
    if placement is None:
        return None
    if isinstance(placement, _StridedShard):
        return actions.SplitInGroupedChunks(count, placement.dim, num_groups=2, chunk_size=1)
    return actions.Split(count, dim=placement.dim)


def _pack(shard: nn.Module) -> None:
    """Pack the linear layers of a shard, and those that the package wrapped, which it keeps in a second place."""
    pack_linears(shard)
    for module in shard.modules():
        if (wrapped := module._modules.get("tp_wrapped_module")) is not None:
            module.__dict__["tp_wrapped_module"] = wrapped


def _package() -> Any:
    """The package. It imports pkg_resources, which setuptools had until 2025, to look for one that is not used here."""
    lacking = "pkg_resources" not in sys.modules
    if lacking:
        sys.modules["pkg_resources"] = ModuleType("pkg_resources")
    try:
        import tensor_parallel
        import tensor_parallel.communications
        import tensor_parallel.state_actions
    except ImportError as error:
        raise PreflightError(
            f"backend tensor_parallel needs the package of that name: {error}",
            where="parallel.options.backend",
            fix="pip install tensor_parallel==2.0.0 (or install launcher with its extra `tensor-parallel`), "
            "or take the option out: transformers' own backend needs nothing more",
        ) from None
    finally:
        if lacking:
            del sys.modules["pkg_resources"]
    return tensor_parallel


def _pattern(name: str) -> str:
    """A regular expression for ``name`` in every layer."""
    return f"^{re.escape(sharding.NUMBER.sub('*', name))}$".replace(r"\*", r"\d+")


def _weight(module: nn.Module) -> nn.Parameter | None:
    return module._parameters.get("weight")


def _sum(first: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    return sum(others, start=first)


def _columns(*parts: torch.Tensor) -> torch.Tensor:
    return torch.cat(parts, dim=-1)
