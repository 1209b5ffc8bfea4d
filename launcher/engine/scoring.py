"""ScoreEngine: the loop of task `score`. It brings prefixes into slots and asks for the log-probabilities of what
continues them; rows with the same prefix share a slot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from launcher.engine.boundary import divide
from launcher.engine.loop import Emit, Flight, Loop, Pull
from launcher.engine.question import Ask, Draft, Question, Slot
from launcher.input.codes import RowError
from launcher.model.step import Step
from launcher.records import Request


class Group:
    """Slots that step together. It takes rows in until it has a step's tokens to feed: a row that waits outside may
    still find its prefix in a slot."""

    def __init__(self, number: int, slots: int, length: int, chunk: int) -> None:
        self.number, self._chunk = number, chunk
        self.in_flight = False
        self._idle = [Slot(slot, length) for slot in range(slots)]  # the longest idle first
        self._busy: list[Slot] = []  # the oldest first

    @property
    def waiting(self) -> int:
        """Tokens to feed."""
        return sum(slot.waiting for slot in self._busy)

    @property
    def has_room(self) -> bool:
        return bool(self._idle) and self.waiting < self._chunk

    def best(self, prefix: list[int]) -> Slot:
        """The idle slot that holds most of ``prefix``."""
        return max(self._idle, key=lambda slot: slot.shared(prefix))

    def take(self, slot: Slot, question: Question) -> None:
        """Give ``question`` one of its slots."""
        slot.add(question)
        if slot in self._idle:
            self._idle.remove(slot)
            self._busy.append(slot)

    def may_join(self, slot: Slot, prefix: list[int]) -> bool:
        """Whether a question with ``prefix`` may share ``slot``; not where more waits there than computing the prefix
        once more would take: other groups may have nothing to do."""
        most = self._chunk + len(prefix)
        return not slot.alone and prefix == slot.prefix and slot.asking < most

    def draft(self) -> Draft:
        """The next step, maybe an empty one. A question that must be alone has it for itself."""
        draft = Draft(self._chunk)
        for slot in self._busy:
            if not draft.room or (slot.alone and len(draft)):
                break
            slot.feed(draft)
            if slot.alone:
                break
        return draft

    def settle(self, slot: Slot) -> list[Question]:
        """Take the answered questions out of ``slot``, and all of them if one went wrong; returns them."""
        if any(question.bad for question in slot.questions):
            found = slot.give_up()
        else:
            found = [question for question in slot.questions if question.answered]
            slot.questions = [question for question in slot.questions if not question.answered]
        if not slot.questions:
            self._busy.remove(slot)
            self._idle.append(slot)
        return found

    def settled(self) -> list[Question]:
        """The questions of all slots that are answered, or went wrong with one of their slot."""
        return [question for slot in [*self._busy] for question in self.settle(slot)]


class ScoreEngine(Loop[Group, Ask]):
    """Scores. A step feeds prefixes and continuations, as many tokens as a step of prompts has, and asks for the
    continuations' log-probabilities; no logits leave the last stage."""

    def _reset(self) -> None:
        super()._reset()
        self._holders: dict[tuple[int, ...], tuple[Group, Slot]] = {}
        self._again: list[Question] = []  # that went wrong beside others

    def _new_group(self, number: int) -> Group:
        batch = self._batch
        return Group(number, batch.slots, batch.max_length, batch.prefill_chunk)

    def _refill(self, pull: Pull, emit: Emit, should_stop: Callable[[], bool]) -> None:
        while self._again and (free := self._free()):
            self._place(self._again.pop(), free)
        super()._refill(pull, emit, should_stop)

    def _admit(self, request: Request, free: list[Group]) -> None:
        """To the slot that has its prefix, or else to the group that has least to do."""
        prefix, continuations = divide(self._text, request)
        self.counters.prompt_tokens += len(prefix)
        question, holder = (
            Question(request, prefix, continuations),
            self._holders.get(tuple(prefix)),
        )
        if holder is not None and holder[0].may_join(holder[1], prefix):
            holder[0].take(holder[1], question)
        else:
            self._place(question, free)

    def _place(self, question: Question, free: list[Group]) -> None:
        group = min(free, key=lambda group: group.waiting)
        slot = group.best(question.prefix)
        self._holders.pop(tuple(slot.prefix), None)
        self._holders[tuple(question.prefix)] = group, slot
        group.take(slot, question)

    def _draft(self, group: Group) -> tuple[Step, list[Ask]] | None:
        draft = group.draft()
        return (draft.step(group.number), draft.asks) if len(draft) else None

    def _take_in(self, flight: Flight[Group, Ask], found: list[Any], emit: Emit) -> None:
        for ask, value in zip(flight.rows, found, strict=True):
            ask.question.take(ask, value)
        for question in flight.group.settled():
            if question.answered:
                self.counters.rows_done += 1
                self.counters.completion_tokens += sum(map(len, question.continuations))
                emit(question.score())
            elif question.bad and question.alone:
                what = "a log-probability is no finite number"
                self._fail(question.request, RowError("not_a_number", what), emit)
            else:
                question.begin()
                question.alone = True
                self._again.append(question)
