"""Tokens per second of the engine against transformers on rows of mixed lengths, as ratios in one run.

    python -m benchmarks.engine [--size 88m|1.1b] [--slots 8] [--rounds 3] [--vllm PYTHON]

Contenders take turns, so that what else the machine does falls on all of them; the figure is the median
over the rounds of the ratio within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, LlamaForCausalLM

from benchmarks.models import build, mixed_rows
from launcher.engine.engine import Engine
from launcher.engine.text import Text
from launcher.measure.spans import NullRecorder
from launcher.model.local import LocalStepModel
from launcher.model.packed import pack_linears
from launcher.plan.batching import PREFILL_CHUNK
from launcher.plan.plan import Batch
from launcher.records import Failure, Generation, Request, Sampling

Rows = list[tuple[list[int], int]]
Outputs = list[list[int]]  # new tokens of each row


class TokenText(Text):
    """Prompts that are tokens already, and generations that stay tokens."""

    def __init__(self, context: int) -> None:
        self.eos, self.context = frozenset(), context

    def encode(self, request: Request) -> list[int]:
        assert request.prompt is not None
        return [int(token) for token in request.prompt.split()]

    def decode(self, tokens: list[int]) -> str:
        return " ".join(map(str, tokens))


def run_engine(model: LlamaForCausalLM, rows: Rows, slots: int) -> Outputs:
    longest = max(len(prompt) + new for prompt, new in rows)
    batch = Batch(groups=1, slots=slots, max_length=longest, prefill_chunk=PREFILL_CHUNK["cpu"])
    requests = iter(
        Request(index, str(index), Sampling(max_new_tokens=new), " ".join(map(str, prompt)))
        for index, (prompt, new) in enumerate(rows)
    )
    outputs: Outputs = [[] for _ in rows]

    def emit(row: Generation | Failure) -> None:
        assert isinstance(row, Generation), row
        outputs[row.index] = [int(token) for token in row.text.split()]

    step_model = LocalStepModel(model, batch, NullRecorder())
    Engine(step_model, TokenText(longest), batch).run(lambda: next(requests, None), emit)
    return outputs


def run_padded(model: LlamaForCausalLM, rows: Rows, size: int = 8) -> Outputs:
    """transformers.generate in batches of ``size`` rows as they come, padded on the left."""
    outputs: Outputs = []
    for first in range(0, len(rows), size):
        part = rows[first : first + size]
        widest = max(len(prompt) for prompt, _ in part)
        tokens = torch.tensor([[0] * (widest - len(prompt)) + prompt for prompt, _ in part])
        mask = torch.tensor(
            [[0] * (widest - len(prompt)) + [1] * len(prompt) for prompt, _ in part]
        )
        made = model.generate(
            tokens,
            attention_mask=mask,
            max_new_tokens=max(new for _, new in part),
            do_sample=False,
        )
        outputs += [
            row[widest : widest + new].tolist() for row, (_, new) in zip(made, part, strict=True)
        ]
    return outputs


def run_continuous(model: LlamaForCausalLM, rows: Rows) -> Outputs:
    """transformers' continuous batching, with a cache that holds all rows at once."""
    longest = max(len(prompt) + new for prompt, new in rows)
    config = ContinuousBatchingConfig(
        num_blocks=len(rows) * -(-longest // 256), max_batch_tokens=512, allow_block_sharing=False
    )
    settings = GenerationConfig(do_sample=False, eos_token_id=-1)
    outputs: Outputs = [[] for _ in rows]
    with model.continuous_batching_context_manager(
        generation_config=settings, continuous_batching_config=config
    ) as manager:
        for index, (prompt, new) in enumerate(rows):
            manager.add_request(prompt, request_id=str(index), max_new_tokens=new)
        left = len(rows)
        while left:
            result = manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                outputs[int(result.request_id)] = result.generated_tokens
                left -= 1
            elif result is None and not manager.is_running():
                raise RuntimeError("continuous batching ended early")
    return outputs


class Vllm:
    """vLLM in another Python environment, which ``python`` is of; it waits while others have their turn. ``ranks`` share
    the model's tensors, each with ``threads`` cores."""

    def __init__(
        self,
        python: str,
        model: LlamaForCausalLM,
        rows: Rows,
        slots: int,
        threads: int,
        ranks: int = 1,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name)
        model.save_pretrained(path)
        (path / "rows.json").write_text(json.dumps(rows))
        cores = [f"{rank * threads}-{(rank + 1) * threads - 1}" for rank in range(ranks)]
        self._process = subprocess.Popen(
            [
                *(python, str(Path(__file__).with_name("vllm_contender.py"))),
                *(str(path), str(path / "rows.json"), str(slots), str(ranks)),
                str(model.dtype).removeprefix("torch."),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={
                **os.environ,
                "VLLM_CPU_KVCACHE_SPACE": "4",  # GiB; else it sizes it by the RAM
                # As many cores as the others have; of itself it leaves one to its scheduler.
                "VLLM_CPU_OMP_THREADS_BIND": "|".join(cores),
            },
            text=True,
        )
        self._answer()

    def __call__(self) -> Outputs:
        assert self._process.stdin is not None
        self._process.stdin.write("again\n")
        self._process.stdin.flush()
        tokens: Outputs = self._answer()["tokens"]
        return tokens

    def _answer(self) -> dict[str, Any]:
        """The next line that is JSON: vLLM says other things as well."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        raise RuntimeError("vLLM ended early")

    def close(self) -> None:
        self._process.communicate()
        self._folder.cleanup()


def compare(contenders: dict[str, Callable[[], Outputs]], rounds: int) -> None:
    """Print every contender's tokens per second and the first one's ratio to each."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    tokens: dict[str, Outputs] = {}
    for turn in range(rounds):
        for name, run in contenders.items():
            started = time.perf_counter()
            tokens[name] = run()
            seconds = time.perf_counter() - started
            rates[name].append(sum(map(len, tokens[name])) / seconds)
            print(f"round {turn}: {name}: {rates[name][-1]:.1f} tok/s", flush=True)
    ours, *_ = contenders
    for name, found in rates.items():
        ratio = statistics.median(
            mine / theirs for mine, theirs in zip(rates[ours], found, strict=True)
        )
        same = sum(one == other for one, other in zip(tokens[ours], tokens[name], strict=True))
        print(
            f"{name:32} {statistics.median(found):7.1f} tok/s   {ours} / it: {ratio:5.2f}"
            f"   rows with the same tokens: {same}/{len(tokens[name])}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=("88m", "1.1b"), default="88m")
    parser.add_argument("--slots", type=int, nargs="+", default=[16])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--vllm", metavar="PYTHON", help="of an environment that has vllm-cpu")
    parser.add_argument("--only", nargs="+", help="contenders whose names contain one of these")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, packed = build(options.size), build(options.size)
    pack_linears(packed)
    rows = mixed_rows(options.rows, model.config.vocab_size)
    contenders: dict[str, Callable[[], Outputs]] = {
        f"engine, {slots} slots": partial(run_engine, packed, rows, slots)
        for slots in options.slots
    }
    contenders["generate, padded batches of 8"] = partial(run_padded, model, rows)
    contenders["continuous batching"] = partial(run_continuous, model, rows)
    vllm = None
    if options.vllm:
        vllm = Vllm(options.vllm, model, rows, max(options.slots), options.threads)
    if vllm:
        contenders["vLLM"] = vllm
    chosen = {
        name: run
        for name, run in contenders.items()
        if not options.only or any(part in name for part in options.only)
    }
    compare(chosen, options.rounds)
    if vllm:
        vllm.close()


if __name__ == "__main__":
    main()
