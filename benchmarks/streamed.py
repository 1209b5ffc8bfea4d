"""Streaming: speed against the model in memory and against accelerate's disk offload, and a 70B in 4 GiB.

    python -m benchmarks.streamed speed [--batch 8 32] [--rounds 3] [--airllm PYTHON]
    python -m benchmarks.streamed cold [--rounds 3]
    python -m benchmarks.streamed seventy [--memory 4GiB] [--layers 80] [--new 3] [--slots 8]

``speed`` is a llama of 1.1B in bf16, 64 tokens of prompt and 32 new ones per row, files in the page cache;
contenders take turns, and the figure is the median over the rounds of the ratio within a round. ``cold`` reads the
same files after dropping them from the cache, beside a plain read of them. ``seventy`` streams from files with
Llama-2-70B's shapes that take no disk: they are sparse, so what they say is nothing, but all of it is read.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from models import byte_tokenizer
from sparse import sparse_checkpoint

from benchmarks.engine import TokenText
from benchmarks.models import build
from benchmarks.process import drop
from launcher.engine.engine import Engine
from launcher.job.spec import JobSpec
from launcher.measure.spans import Recorder
from launcher.model.step import StepModel, SweepModel
from launcher.model.weight_files import Range, WeightFiles
from launcher.plan.checkpoint import Checkpoint
from launcher.plan.machines import Machines
from launcher.plan.plan import Plan
from launcher.plan.shapes import known_config
from launcher.plan.sizes import GIB, read_size
from launcher.records import Demand, Failure, Generation, Request, Sampling
from launcher.strategies import sequential, streamed

PROMPT, NEW, VOCABULARY = 64, 32, 32000
LLAMA = "meta-llama/Llama-2-70b-hf"
Outputs = dict[int, str]


def planned(
    folder: Path, strategy: str, rows: int, new: int, **options: Any
) -> tuple[JobSpec, Plan]:
    """What the plan makes of ``rows`` rows at once."""
    slots, prompt = options.pop("slots", rows), options.pop("prompt", PROMPT)
    spec = JobSpec.model_validate(
        {
            "name": "benchmark",
            "model": {"path": str(folder), "dtype": "bfloat16"},
            "parallel": {"strategy": strategy, "options": options},
            "batch": {"slots": slots, "max_length": prompt + new},
            "input": {"path": "none"},
        }
    )
    machines = Machines("cpu", 1, 0, None, 64 * GIB)
    demand = Demand(rows, 4 * prompt, new)
    place = (streamed if strategy == "streamed" else sequential).place
    plan = place(Checkpoint.read(folder), machines, spec, demand)
    assert plan.fits, plan.reasons
    return spec, plan


def load(
    folder: Path, strategy: str, rows: int, new: int, **options: Any
) -> tuple[StepModel, Plan]:
    spec, plan = planned(folder, strategy, rows, new, **options)
    module = streamed if strategy == "streamed" else sequential
    recorder = Recorder(None, {})
    model: StepModel = module.load(plan.placements[0], plan, spec, recorder, None)
    return model, plan


def generate(model: StepModel, plan: Plan, rows: int, new: int) -> Outputs:
    """Random prompts through the engine; tokens by row."""
    torch.manual_seed(1)
    length = plan.batch.max_length
    prompts = torch.randint(1, VOCABULARY, (rows, length - new)).tolist()
    requests = iter(
        Request(n, str(n), Sampling(max_new_tokens=new), " ".join(map(str, prompt)))
        for n, prompt in enumerate(prompts)
    )
    found: Outputs = {}

    def emit(row: Generation | Failure) -> None:
        assert isinstance(row, Generation), row
        found[row.index] = row.text

    Engine(model, TokenText(length), plan.batch).run(lambda: next(requests, None), emit)
    return found


def hf_generate(model: Any, rows: int) -> None:
    torch.manual_seed(1)
    tokens = torch.randint(1, VOCABULARY, (rows, PROMPT))
    made = model.generate(tokens, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
    assert made.shape == (rows, PROMPT + NEW)


def tiny_llama(folder: Path) -> Path:
    """The checkpoint of 1.1B, in shards of 500 MB."""
    if not (folder / "config.json").exists():
        build("1.1b").save_pretrained(folder, max_shard_size="500MB")
        byte_tokenizer().save_pretrained(folder)  # AirLLM asks for one
    return folder


def settle(path: Path) -> None:
    """As the first rank on a node does, before transformers maps the files, too."""
    tensors = Checkpoint.read(path).tensors.values()
    files = WeightFiles(path, (tensor.file for tensor in tensors))
    files.settle([Range(tensor.file, tensor.begin, tensor.end) for tensor in tensors])
    files.close()


def speed(options: argparse.Namespace, folder: Path) -> None:
    """Tokens per second, whole run, of one contender after the other."""
    from transformers import AutoModelForCausalLM

    path = tiny_llama(options.model or folder / "1.1b")
    settle(path)
    whole = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
    places: dict[str, Any] = dict.fromkeys(["model.embed_tokens", "model.norm", "lm_head"], "cpu")
    places |= {"model.rotary_emb": "cpu", "model.layers": "disk"}
    offloaded = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.bfloat16, device_map=places, offload_folder=str(folder / "offload")
    ).eval()
    for rows in options.batch:
        few = load(path, "streamed", rows, NEW, memory=read_size(options.memory))
        all_ = load(path, "streamed", rows, NEW)
        packed = load(path, "sequential", rows, NEW)
        contenders = {
            "streamed": partial(generate, *few, rows, NEW),
            "streamed, all stays": partial(generate, *all_, rows, NEW),
            "sequential": partial(generate, *packed, rows, NEW),
            "transformers": partial(hf_generate, whole, rows),
            "disk offload": partial(hf_generate, offloaded, rows),
        }
        print(f"batch {rows}: {few[1].reasons[-1]}", flush=True)
        if options.airllm:
            contenders["AirLLM"] = AirLlm(options.airllm, path, rows)
        chosen = {
            name: run
            for name, run in contenders.items()
            if not options.only or any(part in name for part in options.only)
        }
        compare(chosen, rows * NEW, options.rounds, f"batch {rows}")
        for model, _ in (few, all_, packed):
            model.close()


class AirLlm:
    """AirLLM in another Python environment, which ``python`` is of; it waits while others have their turn. Its
    loading and the second copy that it writes are not counted."""

    def __init__(self, python: str, path: Path, rows: int) -> None:
        script = str(Path(__file__).with_name("airllm_contender.py"))
        self._process = subprocess.Popen(
            [python, script, str(path), str(rows), str(PROMPT), str(NEW)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
            text=True,
        )
        self._wait()

    def __call__(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("again\n")
        self._process.stdin.flush()
        self._wait()

    def _wait(self) -> None:
        """Until it says so; it says other things as well."""
        assert self._process.stdout is not None
        if not any(line.startswith("ready") for line in iter(self._process.stdout.readline, "")):
            raise RuntimeError("AirLLM ended early")


def compare(
    contenders: dict[str, Callable[[], object]], tokens: int, rounds: int, title: str
) -> None:
    """Print every contender's tokens per second and the first one's ratio to each."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            began = time.perf_counter()
            run()
            rates[name].append(tokens / (time.perf_counter() - began))
    ours, *_ = contenders
    for name, found in rates.items():
        ratio = statistics.median(a / b for a, b in zip(rates[ours], found, strict=True))
        print(
            f"{title}: {name:26} {statistics.median(found):7.1f} tok/s   {ours} / it: {ratio:5.2f}",
            flush=True,
        )


def cold(options: argparse.Namespace, folder: Path) -> None:
    """Read rate of a sweep over files that are not in the cache, beside a plain read of the same."""
    path = tiny_llama(options.model or folder / "1.1b")
    files = sorted(path.glob("*.safetensors"))
    model, plan = load(path, "streamed", 1, 1, memory=read_size(options.memory))
    assert isinstance(model, SweepModel)
    ratios = []
    for _ in range(options.rounds):
        drop(files)
        began = time.perf_counter()
        plain = sum(map(plain_read, files)) / (time.perf_counter() - began)
        drop(files)
        before = model.figures()
        generate(model, plan, 1, 1)
        after = model.figures()
        read, seconds = (after[k] - before[k] for k in ("weights_read_bytes", "weights_read_s"))
        ratios.append(read / seconds / plain)
        print(f"plain {plain / 1e9:.2f} GB/s, streamed {read / seconds / 1e9:.2f} GB/s", flush=True)
    print(f"streamed / plain: {statistics.median(ratios):.2f}")
    model.close()


def plain_read(file: Path) -> int:
    """All of a file in large reads into one buffer, by the operating system's defaults."""
    buffer = memoryview(bytearray(16 << 20))
    total = 0
    with file.open("rb", buffering=0) as opened:
        while count := opened.readinto(buffer):
            total += count
    return total


def seventy(options: argparse.Namespace, folder: Path) -> None:
    """A few tokens of a 70B, and what that took."""
    config = {**(known_config(LLAMA) or {}), "num_hidden_layers": options.layers}
    path = sparse_checkpoint(folder / "70b", config | {"dtype": "bfloat16"})
    budget = read_size(options.memory)
    wanted = {"memory": budget, "prompt": options.prompt, "spill_dir": str(folder)}
    began = time.perf_counter()
    model, plan = load(path, "streamed", options.slots, options.new, **wanted)
    loaded = time.perf_counter()
    assert isinstance(model, SweepModel)
    found = generate(model, plan, options.slots, options.new)
    took = time.perf_counter() - loaded
    figures = model.figures()
    model.close()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    tokens = sum(len(text.split()) for text in found.values())
    rate = figures["weights_read_bytes"] / figures["weights_read_s"]
    print("\n".join(plan.reasons))
    print(f"{plan.parameters:,} parameters, {plan.weights_bytes:,} bytes, batch {plan.batch}")
    print(
        f"loaded in {loaded - began:.1f} s; {tokens} tokens in {took:.1f} s; "
        f"read {figures['weights_read_bytes'] / 1e9:.1f} GB at {rate / 1e9:.1f} GB/s while reading, "
        f"{figures['weights_read_bytes'] / took / 1e9:.1f} GB/s over all, "
        f"{figures['weights_read_bytes'] / tokens / 1e9:.2f} GB per token"
    )
    print(
        f"peak resident {resident / GIB:.2f} GiB, planned "
        f"{plan.devices[0].peak_bytes / GIB:.2f} GiB, budget {budget / GIB:.2f} GiB"
    )
    assert resident <= budget, "over the budget"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("speed", "cold", "seventy"))
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", default=None)
    parser.add_argument("--layers", type=int, default=80)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--new", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=8, help="tokens, of seventy")
    parser.add_argument("--model", type=Path, help="where the checkpoint of 1.1B is, or is to be")
    parser.add_argument("--only", nargs="+", help="contenders whose names contain one of these")
    parser.add_argument("--airllm", metavar="PYTHON", help="of an environment that has AirLLM")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.memory = options.memory or {"seventy": "4GiB"}.get(options.what, "1400MiB")
    with tempfile.TemporaryDirectory() as folder:
        {"speed": speed, "cold": cold, "seventy": seventy}[options.what](options, Path(folder))


if __name__ == "__main__":
    main()
