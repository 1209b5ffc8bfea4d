"""The tiny model of the tests and the demo: where it is, sums it was not trained on, and whether it is right.

A row's id is the whole sum ("38+45=83"), so a checker needs nothing but a generation to judge it.
`python tests/adder.py` prints the rows of configs/demo/prompts.jsonl, with the argument `questions` those of
configs/score/questions.jsonl.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from pathlib import Path
from typing import Any

LARGEST = 999  # operands are 0 to 999


def adder_path() -> Path:
    """Folder of the checkpoint, as `model.path` wants it."""
    return Path(__file__).parent / "assets" / "adder"


def is_held_out(a: int, b: int) -> bool:
    """Whether training never sees a+b, nor b+a: one unordered pair in 16, by hash."""
    return hashlib.sha256(f"{min(a, b)}+{max(a, b)}".encode()).digest()[0] % 16 == 0


def draw_sum(rng: random.Random, *, held_out: bool) -> tuple[int, int]:
    """A random pair of operands of 1 to 3 digits each, longer ones more often, from one side of the split."""
    while True:
        digits = rng.choices((1, 2, 3), (1, 2, 4), k=2)
        a, b = (rng.randrange(10 ** (d - 1) if d > 1 else 0, 10**d) for d in digits)
        if is_held_out(a, b) == held_out:
            return a, b


def held_out_sums(n: int, seed: int = 0) -> list[tuple[int, int]]:
    """``n`` different pairs that training never sees. Raises ValueError above 20,000 (there are 62,500 or so)."""
    if n > 20_000:
        raise ValueError(f"{n} held-out sums: ask for 20,000 at most")
    rng = random.Random(seed)
    sums: dict[tuple[int, int], None] = {}
    while len(sums) < n:
        sums[draw_sum(rng, held_out=True)] = None
    return list(sums)


def prompt_rows(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """``n`` input rows, their ids unique; every third asks through the chat template."""
    rows: list[dict[str, Any]] = []
    for index, (a, b) in enumerate(held_out_sums(n, seed)):
        question = f"{a}+{b}="
        row: dict[str, Any] = {"id": f"{question}{a + b}"}
        if index % 3 == 2:
            row["messages"] = [{"role": "user", "content": question}]
        else:
            row["prompt"] = question
        rows.append(row)
    return rows


def question_rows(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """``n`` rows to score, their ids unique: the sum and three others of as many digits, in some order."""
    draw = random.Random(seed)
    rows = []
    for a, b in held_out_sums(n, seed):
        right = a + b
        digits = len(str(right))
        low, high = 10 ** (digits - 1) if digits > 1 else 0, 10**digits
        options = {right}
        while len(options) < 4:
            options.add(draw.randrange(low, high))
        continuations = draw.sample([str(option) for option in sorted(options)], 4)
        rows.append(
            {"id": f"{a}+{b}={right}", "prefix": f"{a}+{b}=", "continuations": continuations}
        )
    return rows


def is_right(generation: dict[str, Any]) -> bool:
    """Whether a row of outputs.jsonl (its id from ``prompt_rows``) holds the sum and nothing else."""
    return bool(generation["text"] == generation["id"].partition("=")[2])


if __name__ == "__main__":
    made = question_rows(200) if sys.argv[1:] == ["questions"] else prompt_rows(500)
    sys.stdout.writelines(json.dumps(row) + "\n" for row in made)
