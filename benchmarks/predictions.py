"""What `launcher plan` predicts beside what runs measure, and whether `strategy: auto` takes the fastest way, on two
CPU ranks. Everything is a real `launcher run` with nothing else on the machine.

    python -m benchmarks.predictions --machine               # first, some minutes: launcher bench machine
    python -m benchmarks.predictions [--only naive,ring]     # predicted and measured, per strategy
    python -m benchmarks.predictions --auto 0-3              # specs 0 to 3: auto's choice beside the fastest of its candidates

``--folder`` keeps models and results from one call to the next; ``--cache`` keeps the machine's profile there
instead of where `launcher` has it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Found = dict[str, Any]  # a summary.json
SHOWN = (
    *("tokens_per_s", "utilization", "bubble", "wall_s", "load_s"),
    "generate_s",
)


@dataclass(frozen=True)
class Spec:
    """Rows of ``prompt`` tokens and ``new`` new ones, each from a range, for a model of benchmarks/models.py."""

    model: str
    rows: int
    prompt: tuple[int, int]
    new: tuple[int, int]
    parallel: dict[str, Any] = field(default_factory=lambda: {"strategy": "auto"})
    batch: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"

    def write(self, models: Path, folder: Path) -> Path:
        """As a job with its prompts, in ``folder``."""
        draw, vocabulary = random.Random(0), 16_000
        rows = [
            {
                "prompt": " ".join(
                    str(draw.randrange(1, vocabulary)) for _ in range(draw.randint(*self.prompt))
                ),
                "max_new_tokens": draw.randint(*self.new),
            }
            for _ in range(self.rows)
        ]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        job = {
            "name": "predictions",
            "model": {"path": str(model_at(models, self.model)), "dtype": self.dtype},
            "parallel": self.parallel,
            "batch": self.batch,
            "input": {"path": "prompts.jsonl"},
            "generation": {"max_new_tokens": self.new[1]},
            "resources": {"device": "cpu"},
        }
        path = folder / "job.yaml"
        path.write_text(yaml.safe_dump(job, sort_keys=False))
        return path


def mixed(parallel: dict[str, Any]) -> Spec:
    """The specs whose predictions are compared differ in this alone."""
    return Spec("100m", 128, (16, 64), (16, 64), parallel, {"slots": 16})


def pipeline(schedule: str) -> dict[str, Any]:
    return {"strategy": "pipeline", "stages": 2, "schedule": schedule}


def streamed(memory: str, **more: Any) -> dict[str, Any]:
    return {"strategy": "streamed", "options": {"memory": memory}, **more}


SPECS = {
    "unsplit": mixed({"strategy": "sequential"}),
    "replicas": mixed({"strategy": "sequential", "replicas": 2}),
    "naive": mixed(pipeline("naive")),
    "gpipe": mixed(pipeline("gpipe")),
    "ring": mixed(pipeline("ring")),
    "tensor": mixed({"strategy": "tensor", "tensor": 2}),
    "streamed": mixed(streamed("1000MiB", replicas=2)),
}
AUTO = {"strategy": "auto"}
OPEN = [
    Spec("100m", 96, (16, 64), (16, 64)),
    Spec("100m", 8, (16, 32), (48, 64)),
    Spec("100m", 1, (64, 64), (96, 96)),
    Spec("100m", 64, (384, 512), (4, 8)),
    Spec("88m", 128, (8, 16), (32, 64), batch={"slots": 8}),
    Spec("88m", 48, (128, 256), (32, 64), batch={"slots": 4}),
    Spec("88m", 64, (16, 128), (32, 64), dtype="bfloat16"),
    Spec("88m", 32, (16, 32), (48, 64), AUTO | {"options": {"memory": "1GiB"}}),
    Spec("25m", 256, (32, 64), (32, 64)),
    Spec("25m", 4, (16, 32), (192, 256), batch={"slots": 2}),
    Spec("25m", 96, (256, 384), (16, 32), dtype="bfloat16"),
    Spec("400m", 32, (32, 64), (16, 32)),
    Spec("400m", 8, (32, 64), (16, 32), AUTO | {"replicas": 1}),
    Spec("400m", 24, (16, 32), (16, 24), AUTO | {"options": {"memory": "1500MiB"}}),
]


def model_at(folder: Path, size: str) -> Path:
    """The model, made if it is not there, with a tokenizer that has a word for each token: its number."""
    path = folder / size
    if not (path / "tokenizer.json").exists():
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        from benchmarks.models import build

        model = build(size)
        model.save_pretrained(path)
        words = {str(n): n for n in range(model.config.vocab_size)}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="0"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(path)
    return path


@dataclass(frozen=True)
class Bench:
    """Where models and runs go, and how often each is run."""

    folder: Path
    rounds: int
    cache: Path | None

    def run(self, job: Path, *overrides: str) -> list[Found]:
        """What each round of a job came to: its summary, with the plan's candidates."""
        return [self._once(job, *overrides) for _ in range(self.rounds)]

    def _once(self, job: Path, *overrides: str) -> Found:
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            run = Path(name) / "run"
            done = self.launcher("run", str(job), *overrides, "--run-dir", str(run), "--json")
            if done.returncode:
                raise SystemExit(f"{job} {overrides}: {done.stdout}{done.stderr}")
            plan = json.loads((run / "plan.json").read_text())
        return {**json.loads(done.stdout), "candidates": plan["candidates"], "plan": plan}

    def launcher(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        env = dict(os.environ) | ({"XDG_CACHE_HOME": str(self.cache)} if self.cache else {})
        command = [sys.executable, "-m", "launcher", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=env)

    def machine(self) -> None:
        """Measure the machine and say what was found."""
        done = self.launcher("bench", "machine", "--dir", str(self.folder))
        print(done.stdout, done.stderr)
        done.check_returncode()


def compare(bench: Bench, only: list[str]) -> None:
    """Print what was predicted beside the median of what was measured."""
    print(f"{'':10}{'figure':14}{'predicted':>11}{'measured':>11}{'off':>10}")
    for name in only or SPECS:
        found = bench.run(SPECS[name].write(bench.folder / "models", bench.folder / name))
        for figure in SHOWN:
            rounds = [summary[figure] for summary in found if summary.get(figure) is not None]
            predicted = found[0]["predicted"].get(figure)
            if not rounds or predicted is None:
                continue
            measured = statistics.median(rounds)
            share = figure in ("utilization", "bubble")
            off = (
                f"{100 * (predicted - measured):+.1f} pt"
                if share
                else f"{predicted / measured - 1:+.1%}"
            )
            print(f"{name:10}{figure:14}{predicted:11.3f}{measured:11.3f}{off:>10}", flush=True)
        print(f"{name:10}{_stages(found[-1])}", flush=True)


def _stages(summary: Found) -> str:
    shares = ("busy", "transfer", "weights", "bubble", "host_gap", "no_work")
    return "; ".join(
        f"{stage['rank']}: " + ", ".join(f"{name} {stage[name]:.2f}" for name in shares)
        for stage in summary["stages"]
        if stage["busy"] is not None
    )


def choose(bench: Bench, numbers: list[int]) -> None:
    """Print, of each spec, how fast each of auto's candidates is, and auto's choice over the fastest."""
    ratios = []
    for number in numbers:
        spec = OPEN[number]
        job = spec.write(bench.folder / "models", bench.folder / f"auto-{number}")
        print(
            f"{number}: {spec.model} {spec.dtype}, {spec.rows} rows of {spec.prompt} + {spec.new}"
        )
        speeds: dict[bool, list[float]] = {True: [], False: []}
        for candidate in bench.run(job)[0]["candidates"]:
            if not candidate["fits"]:
                print(f"   {_called(candidate):28}does not fit")
                continue
            found = bench.run(job, *_overrides(candidate))
            speed = statistics.median(summary["tokens_per_s"] for summary in found)
            speeds[candidate["chosen"]].append(speed)
            print(
                f" {'*' if candidate['chosen'] else ' '} {_called(candidate):28}predicted "
                f"{candidate['tokens_per_s'] or 0:8.1f} tok/s, measured {speed:8.1f}",
                flush=True,
            )
        (chosen,) = speeds[True]
        ratios.append(chosen / max([chosen, *speeds[False]]))
        print(f"   auto's choice over the fastest: {ratios[-1]:.3f}", flush=True)
    print(f"least of {len(ratios)}: {min(ratios):.3f}")


def _called(candidate: Found) -> str:
    shape = (candidate[key] for key in ("replicas", "stages", "tensor"))
    return f"{candidate['strategy']} " + " x ".join(map(str, shape))


def _overrides(candidate: Found) -> Iterator[str]:
    for key in ("strategy", "stages", "tensor", "replicas"):
        yield f"parallel.{key}={candidate[key]}"


def _numbers(text: str) -> list[int]:
    """0-3 or 1,5 or all."""
    if text == "all":
        return list(range(len(OPEN)))
    found = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--machine", action="store_true", help="run launcher bench machine first")
    parser.add_argument("--only", default="", help=f"some of {', '.join(SPECS)}")
    parser.add_argument("--auto", metavar="NUMBERS", help=f"of 0-{len(OPEN) - 1}, or all")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="for models and runs; kept")
    parser.add_argument("--cache", type=Path, help="where the machine's profile is, or is to be")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        cache = options.cache.absolute() if options.cache else None
        bench = Bench(folder, options.rounds, cache)
        began = time.perf_counter()
        if options.machine:
            bench.machine()
        if options.auto:
            choose(bench, _numbers(options.auto))
        elif options.only or not options.machine:
            compare(bench, [name for name in options.only.split(",") if name])
        print(f"took {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
