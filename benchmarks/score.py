"""Options of questions scored with their prefix's cache shared, against each option alone, as ratios in one run.

    python -m benchmarks.score [--size 25m] [--questions 4] [--options 5] [--prefix 512] [--rounds 3] [--threads 1]

Alone is once the same engine, made to compute every prefix anew, and once transformers, one option after the other,
with logits of the option's tokens only. Contenders take turns; the figure is the median over the rounds of the ratio
within a round. The sums of all three must agree within 1e-4 for each token that an option may have.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from transformers import LlamaForCausalLM

from benchmarks.models import DTYPES, SIZES, build
from launcher.engine.scoring import ScoreEngine
from launcher.engine.text import Text
from launcher.measure.spans import NullRecorder
from launcher.model.local import LocalStepModel
from launcher.model.packed import pack_linears
from launcher.plan.batching import PREFILL_CHUNK
from launcher.plan.plan import Batch
from launcher.records import Failure, Generation, Request, Sampling, Score

Rows = list[tuple[list[int], list[list[int]]]]  # prefix, options
LONGEST = 12  # tokens of an option


class TokenText(Text):
    """Texts that are tokens already: numbers with a space behind each."""

    def __init__(self, context: int) -> None:
        self.eos, self.context, self._vocabulary = frozenset(), context, None

    def written(self, request: Request) -> tuple[str, bool]:
        return request.prompt or "", False

    def tokens(self, text: str, special: bool) -> list[int]:
        return [int(token) for token in text.split()]


def score(model: LlamaForCausalLM, rows: Rows, context: int) -> list[float]:
    """The sums of log-probabilities of all options, by the engine."""
    chunk = PREFILL_CHUNK["cpu"]
    batch = Batch(groups=1, slots=8, max_length=context, prefill_chunk=chunk)
    requests = iter(
        Request(
            index, str(index), Sampling(), _text(prefix), continuations=tuple(map(_text, options))
        )
        for index, (prefix, options) in enumerate(rows)
    )
    found: dict[int, list[float]] = {}

    def emit(row: Generation | Score | Failure) -> None:
        assert isinstance(row, Score), row
        found[row.index] = [score["logprob"] for score in row.scores]

    engine = ScoreEngine(LocalStepModel(model, batch, NullRecorder()), TokenText(context), batch)
    engine.run(lambda: next(requests, None), emit)
    return [value for index in range(len(rows)) for value in found[index]]


def score_alone(model: LlamaForCausalLM, rows: Rows, context: int) -> list[float]:
    """The same, an engine for each option: there is no cache to share."""
    return [
        value
        for prefix, options in rows
        for option in options
        for value in score(model, [(prefix, [option])], context)
    ]


def score_plainly(model: LlamaForCausalLM, rows: Rows, _: int) -> list[float]:
    """The same by transformers, with each option as a text of its own."""
    found = []
    for prefix, options in rows:
        for option in options:
            tokens = torch.tensor([prefix + option])
            with torch.inference_mode():
                logits = model(tokens, logits_to_keep=len(option) + 1, use_cache=False).logits
            logs = logits[0, :-1].float().log_softmax(dim=-1)
            found.append(float(logs.gather(1, torch.tensor(option)[:, None]).sum()))
    return found


def questions(count: int, options: int, prefix: int, vocabulary: int) -> Rows:
    """Options of 1 to LONGEST tokens."""
    draw = random.Random(0)

    def tokens(length: int) -> list[int]:
        return [draw.randrange(1, vocabulary) for _ in range(length)]

    return [
        (tokens(prefix), [tokens(draw.randint(1, LONGEST)) for _ in range(options)])
        for _ in range(count)
    ]


def _text(tokens: list[int]) -> str:
    return "".join(f"{token} " for token in tokens)


def _timed(
    contender: Callable[[], list[float]], expected: list[float] | None
) -> tuple[float, list[float]]:
    began = time.perf_counter()
    found = contender()
    taken = time.perf_counter() - began
    if expected is not None:
        worst = max(abs(one - other) for one, other in zip(found, expected, strict=True))
        assert worst < 1e-4 * LONGEST, worst
    return taken, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--size", choices=[s for s in SIZES if DTYPES[s] == torch.float32], default="25m"
    )
    for name, default in (("questions", 4), ("options", 5), ("prefix", 512), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    model = build(asked.size)
    pack_linears(model)
    rows = questions(asked.questions, asked.options, asked.prefix, SIZES[asked.size]["vocab_size"])
    context = asked.prefix + LONGEST * asked.options
    plain = build(asked.size)
    contenders = {
        "engine, each alone": partial(score_alone, model, rows, context),
        "transformers, each alone": partial(score_plainly, plain, rows, context),
    }
    shared = partial(score, model, rows, context)
    _, expected = _timed(shared, None)
    ratios: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(asked.rounds):
        taken, _ = _timed(shared, expected)
        for name, contender in contenders.items():
            ratios[name].append(_timed(contender, expected)[0] / taken)
    for name, found in ratios.items():
        median = statistics.median(found)
        print(f"{name} / shared: {median:5.2f} ({min(found):.2f} to {max(found):.2f})", flush=True)


if __name__ == "__main__":
    main()
