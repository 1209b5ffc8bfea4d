"""What the engine keeps of requests in flight: a Sequence each, in the slots of Groups."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch

from launcher.engine.bias import Bias, together
from launcher.engine.text import StopFinder, Text
from launcher.engine.told import describe
from launcher.input.codes import RowError
from launcher.model.sampling import NOT_A_NUMBER
from launcher.model.step import Step, StepSampling
from launcher.records import Generation, Request

RECENT = 4096  # rows over which times to the first token are kept: a run may have millions


class Sequence:
    """A request in a slot: its tokens, and how many of them the slot's cache holds."""

    def __init__(self, request: Request, prompt: list[int], text: Text) -> None:
        self.request = request
        self.prompt = prompt
        self.generated: list[int] = []
        self.cached = 0
        self.slot = -1
        self.came = 0  # number of its group's step before which it got its slot
        self.alone = False  # its prompt shares a forward pass with no other
        self.first_token_s: float | None = None  # seconds from the start of the prefill
        self.bias = Bias(request.sampling)
        self._told: list[
            list[float]
        ] = []  # of each token, where the row asks for log-probabilities
        self._text = text
        self._limit = min(request.sampling.max_new_tokens, text.context - len(prompt))
        self._stop = StopFinder(text, request.sampling.stop)
        self._began = time.perf_counter()

    @property
    def prompt_left(self) -> int:
        """Tokens of the prompt that the cache does not hold yet."""
        return max(0, len(self.prompt) - self.cached)

    def restart_alone(self) -> bool:
        """Begin the prompt again, with no other row in its steps; False if that was done, or came too late.

        Rows are laid end to end in prefill, and NaN goes through every mask: what one row's overflow does to its
        neighbours is undone here, and only the row itself fails.
        """
        if self.alone or self.generated:
            return False
        self.alone, self.cached = True, 0
        return True

    def pending(self, count: int) -> list[int]:
        """The next ``count`` tokens to feed."""
        if self.generated:
            return self.generated[-1:]
        return self.prompt[self.cached : self.cached + count]

    def advance(self, count: int, token: int, told: list[float] | None = None) -> Generation | None:
        """Take in that ``count`` tokens were fed and ``token`` was drawn after them; ``told`` is what a step with tops
        yields behind it.

        Returns the generation if that finished it. Raises RowError if the logits held NaN.
        """
        self.cached += count
        if self.prompt_left:
            return None
        if token == NOT_A_NUMBER:
            raise RowError("not_a_number", f"the model's logits are NaN after {self.cached} tokens")
        if self.first_token_s is None:
            self.first_token_s = time.perf_counter() - self._began
        self.generated.append(token)
        self.bias.drew(token)
        self._told.append(told or [])
        if token in self._text.eos:
            return self._finish("stop", self.generated[:-1])
        if self._stop.found(self.generated):
            return self._finish("stop", self.generated)
        if len(self.generated) >= self._limit:
            return self._finish("length", self.generated)
        return None

    def _finish(self, reason: str, tokens: list[int]) -> Generation:
        text = self._text.decode(tokens)
        cut = self._stop.cut(text)
        return Generation(
            index=self.request.index,
            id=self.request.id,
            text=(self.request.prompt or "") * self.request.echo + (text if cut is None else cut),
            finish_reason=reason if cut is None else "stop",
            prompt_tokens=len(self.prompt),
            completion_tokens=len(self.generated),
            logprobs=self._logprobs(tokens, len(text) if cut is None else len(cut)),
        )

    def _logprobs(self, tokens: list[int], letters: int) -> list[dict[str, Any]] | None:
        """What is told of the tokens of the text's first ``letters``, where the row asks for it."""
        tops, found, length = self.request.sampling.logprobs, [], 0
        if tops is None:
            return None
        for entry in describe(self._text, tokens, self._told, tops):
            if length >= letters:
                break
            found.append(entry)
            length += len(entry["token"])
        return found


class Group:
    """The slots that step together."""

    def __init__(self, number: int, slots: int) -> None:
        self.number = number
        self.slots: list[Sequence | None] = [None] * slots
        self.in_flight = False
        self._steps = 0
        self._kept_waiting = 0  # steps since the last one of those that decode

    def __len__(self) -> int:
        return sum(sequence is not None for sequence in self.slots)

    @property
    def has_room(self) -> bool:
        return None in self.slots

    def add(self, sequence: Sequence) -> None:
        """Put ``sequence`` into the first free slot."""
        sequence.slot = self.slots.index(None)
        sequence.came = self._steps
        self.slots[sequence.slot] = sequence

    def remove(self, sequence: Sequence) -> None:
        self.slots[sequence.slot] = None

    def next_rows(self, chunk: int) -> list[tuple[Sequence, int]]:
        """The sequences of the next step, each with how many tokens it is fed.

        All that decode, and prompts in the room that these leave of ``chunk`` tokens: the last one is cut to fit. A
        prompt that must be alone, or that finds no room, goes without those that decode, which wait for as many such
        steps as there are slots at most.
        """
        decoding = [(s, 1) for s in self.slots if s is not None and not s.prompt_left]
        # Of prompts that came together those with the most to say go first: they end last.
        waiting = sorted(
            (s for s in self.slots if s is not None and s.prompt_left),
            key=lambda s: (s.came, -s.request.sampling.max_new_tokens),
        )
        apart = waiting and (waiting[0].alone or len(decoding) >= chunk)
        if apart and decoding and self._kept_waiting >= len(self.slots):
            apart, waiting = False, []
        self._kept_waiting = self._kept_waiting + 1 if apart else 0
        rows = [] if apart else decoding
        room = chunk - len(rows)
        for sequence in waiting:
            if not room or (sequence.alone and rows):
                break
            rows.append((sequence, min(sequence.prompt_left, room)))
            room = 0 if sequence.alone else room - rows[-1][1]
        return rows

    def step(self, rows: list[tuple[Sequence, int]]) -> Step:
        """The step that feeds these sequences these numbers of tokens."""
        self._steps += 1
        widest = max(count for _, count in rows)
        tokens = [s.pending(count) + [0] * (widest - count) for s, count in rows]
        starts = torch.tensor([s.cached for s, _ in rows])
        counts = torch.tensor([count for _, count in rows])
        return Step(
            group=self.number,
            kind="prefill" if any(s.prompt_left for s, _ in rows) else "decode",
            slots=torch.tensor([s.slot for s, _ in rows]),
            tokens=torch.tensor(tokens),
            starts=starts,
            counts=counts,
            sampling=_sampling([s.request for s, _ in rows], starts + counts),
            tops=_tops([s.request for s, _ in rows]),
            bias=together([s.bias for s, _ in rows]),
        )


def _tops(requests: list[Request]) -> int | None:
    asked = [request.sampling.logprobs for request in requests]
    return max((tops for tops in asked if tops is not None), default=None)


def _sampling(requests: list[Request], positions: torch.Tensor) -> StepSampling | None:
    settings = [request.sampling for request in requests]
    if not any(sampling.temperature for sampling in settings):
        return None
    return StepSampling(
        temperature=torch.tensor([s.temperature for s in settings], dtype=torch.float64),
        top_p=torch.tensor([s.top_p for s in settings], dtype=torch.float64),
        top_k=torch.tensor([s.top_k for s in settings]),
        seed=torch.tensor([s.seed for s in settings]),
        position=positions,
    )


@dataclass
class Counters:
    """What the engine did so far. ``first_tokens`` are the seconds to the first token of the last rows done."""

    steps: int = 0
    rows_done: int = 0
    rows_failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_tokens: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    def finished(self, generation: Generation, sequence: Sequence) -> None:
        """Count one more row."""
        self.rows_done += 1
        self.completion_tokens += generation.completion_tokens
        if sequence.first_token_s is not None:
            self.first_tokens.append(sequence.first_token_s)
