"""What the scoring engine keeps of rows in flight: Questions, in Slots whose caches hold their prefixes."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import torch

from launcher.engine.boundary import common
from launcher.engine.told import DIGITS
from launcher.model.step import MOST_ASKED, Scoring, Step
from launcher.records import Request, Score


class Question:
    """A row: the tokens of its prefix and of its continuations, and what is known of them."""

    def __init__(self, request: Request, prefix: list[int], continuations: list[list[int]]) -> None:
        self.request, self.prefix, self.continuations = request, prefix, continuations
        self.alone = False  # shares steps with no other
        self.begin()

    def begin(self) -> None:
        """Forget what was found."""
        self._found = [[math.nan] * len(tokens) for tokens in self.continuations]
        self._left = sum(map(len, self.continuations))
        self.bad = False

    def take(self, ask: Ask, value: float) -> None:
        """Take in the log-probability of a token; one that is no finite number makes the row a bad one."""
        self._found[ask.option][ask.token] = value
        self._left -= 1
        self.bad = self.bad or not math.isfinite(value)

    @property
    def answered(self) -> bool:
        return not self._left and not self.bad

    def score(self) -> Score:
        """The row's result, once it is answered."""
        sums = [math.fsum(found) for found in self._found]
        means = [total / len(found) for total, found in zip(sums, self._found, strict=True)]
        scores = [
            {
                "logprob": round(total, DIGITS),
                "mean_logprob": round(mean, DIGITS),
                "tokens": [round(value, DIGITS) for value in found],
                "token_ids": tokens,
            }
            for total, mean, found, tokens in zip(
                sums, means, self._found, self.continuations, strict=True
            )
        ]
        return Score(
            index=self.request.index,
            id=self.request.id,
            scores=scores,
            best=sums.index(max(sums)),
            best_mean=means.index(max(means)),
            prompt_tokens=len(self.prefix),
            completion_tokens=sum(map(len, self.continuations)),
        )


class Ask(NamedTuple):
    """Which log-probability: of the token of this number in the continuation of this number."""

    question: Question
    option: int
    token: int


@dataclass
class Branch:
    """A continuation that is fed, but for its last token, behind its prefix."""

    question: Question
    option: int
    fed: int = 0

    @property
    def tokens(self) -> list[int]:
        return self.question.continuations[self.option]

    @property
    def left(self) -> int:
        return len(self.tokens) - 1 - self.fed


class Draft:
    """A step in the making: up to ``room`` more tokens, and log-probabilities after them."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.openings = room * (
            MOST_ASKED - 1
        )  # that may still be asked for; each token fed may ask for one besides
        self.asks: list[Ask] = []
        self._rows: list[tuple[int, int, list[int]]] = []
        self._bases: list[int] = []
        self._shifts: list[int] = []
        self._places: list[int] = []

    def __len__(self) -> int:
        return len(self._rows)

    def begin(self, slot: int, start: int) -> None:
        """A new row, at this place of the slot."""
        self._rows.append((slot, start, []))

    def feed(self, tokens: list[int], base: int = 0, shift: int = 0) -> None:
        """More tokens of the row, which see what Scoring says."""
        self._rows[-1][2].extend(tokens)
        self._bases += [base] * len(tokens)
        self._shifts += [shift] * len(tokens)
        self.room -= len(tokens)

    def ask(self, ask: Ask, back: int = 1) -> None:
        """Ask for a log-probability after the last token that was fed, or the one ``back`` before the end."""
        self.asks.append(ask)
        self._places.append(len(self._bases) - back)

    def step(self, group: int) -> Step:
        slots, starts, rows = zip(*self._rows, strict=True)
        widest = max(map(len, rows))
        targets = [ask.question.continuations[ask.option][ask.token] for ask in self.asks]
        return Step(
            group=group,
            kind="prefill",
            slots=torch.tensor(slots),
            tokens=torch.tensor([tokens + [0] * (widest - len(tokens)) for tokens in rows]),
            starts=torch.tensor(starts),
            counts=torch.tensor([len(tokens) for tokens in rows]),
            scoring=Scoring(*map(_numbers, (self._bases, self._shifts, self._places, targets))),
        )


class Slot:
    """A place in a group's cache: the prefix that it holds, and the questions about it.

    Behind the prefix the continuations of one step lie side by side; those of the next step take their place. The
    prefix's last token is fed again for questions that come later: their first tokens follow from it.
    """

    def __init__(self, number: int, length: int) -> None:
        self.number, self._length = number, length
        self.prefix: list[int] = []
        self.questions: list[Question] = []
        self._cached = 0  # tokens of the prefix that the cache holds
        self._openings: deque[Ask] = deque()
        self._branches: deque[Branch] = deque()
        self._place = 0  # of the next continuation

    @property
    def waiting(self) -> int:
        """Tokens to feed."""
        if not self.questions:
            return 0
        return len(self.prefix) - self._cached + sum(branch.left for branch in self._branches)

    @property
    def asking(self) -> int:
        """Log-probabilities that are still to be asked for."""
        return len(self._openings) + sum(branch.left for branch in self._branches)

    @property
    def alone(self) -> bool:
        return any(question.alone for question in self.questions)

    def shared(self, prefix: list[int]) -> int:
        """How many tokens of ``prefix`` it holds."""
        return common(self.prefix[: self._cached], prefix)

    def add(self, question: Question) -> None:
        """Take a question in; one about another prefix only where no other is unanswered."""
        if question.prefix != self.prefix:
            assert not self.questions, "a slot has one prefix"
            self._cached, self.prefix = self.shared(question.prefix), question.prefix
            self._place = len(self.prefix)
        self._cached = min(self._cached, len(self.prefix) - 1)
        self.questions.append(question)
        for option, tokens in enumerate(question.continuations):
            self._openings.append(Ask(question, option, 0))
            if len(tokens) > 1:
                self._branches.append(Branch(question, option))

    def give_up(self) -> list[Question]:
        """Forget what was computed; returns the questions that were not answered."""
        questions, self.questions = self.questions, []
        self._cached, self._place = 0, len(self.prefix)
        self._openings.clear()
        self._branches.clear()
        return questions

    def feed(self, draft: Draft) -> None:
        """Put into ``draft`` what it has room for."""
        if left := self.prefix[self._cached :][: draft.room]:
            draft.begin(self.number, self._cached)
            draft.feed(left)
            self._cached += len(left)
        if self._cached < len(self.prefix):
            return
        while left and self._openings and draft.openings:
            draft.ask(self._openings.popleft())
            draft.openings -= 1
        if self._openings:
            self._cached -= 1
        self._feed_branches(draft)

    def _feed_branches(self, draft: Draft) -> None:
        base, begun = len(self.prefix), False
        while self._branches and draft.room:
            branch = self._branches[0]
            if not branch.fed and self._place + branch.left > self._length:
                break  # for the next step, which begins behind the prefix again
            if not begun:
                draft.begin(self.number, self._place)
                begun = True
            count = min(branch.left, draft.room)
            first = branch.fed
            draft.feed(branch.tokens[first : first + count], base, self._place - first - base)
            for number in range(count):
                ask = Ask(branch.question, branch.option, first + number + 1)
                draft.ask(ask, back=count - number)
            branch.fed += count
            self._place += count
            if branch.left:
                return
            self._branches.popleft()
        self._place = base


def _numbers(numbers: list[int]) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int64)
