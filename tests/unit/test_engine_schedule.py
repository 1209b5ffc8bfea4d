"""The engine's schedule over a StepModel of any depth that checks every step it is given."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator

import pytest
import torch

from launcher.engine.engine import Engine
from launcher.engine.text import Text
from launcher.model.step import Step
from launcher.plan.plan import Batch
from launcher.records import Failure, Generation, Request, Sampling

EOS = 0


class Words(Text):
    """Prompts and texts that are numbers."""

    def __init__(self, context: int = 64) -> None:
        self.eos, self.context = frozenset([EOS]), context

    def encode(self, request: Request) -> list[int]:
        assert request.prompt is not None
        return [int(word) for word in request.prompt.split()]

    def decode(self, tokens: list[int]) -> str:
        return " ".join(map(str, tokens))


def next_token(tokens: list[int]) -> int:
    """What the model says after these: it depends on all of them, and is EOS now and then."""
    value = 7
    for token in tokens:
        value = (value * 31 + token + 1) % 1009
    return 0 if value % 23 == 0 else 1 + value % 90


class Ring:
    """Keeps what each slot holds, and holds every step against it; ``depth`` steps at most may be in flight
    per group's one."""

    def __init__(self, batch: Batch, depth: int) -> None:
        self.depth = depth
        self.batch = batch
        self.slots: dict[tuple[int, int], list[int]] = {}
        self.flights: deque[tuple[int, torch.Tensor]] = deque()
        self.most_in_flight = 0
        self.kinds: list[str] = []
        self.rows: list[int] = []

    def launch(self, step: Step) -> None:
        assert step.group < self.batch.groups
        assert step.group not in {group for group, _ in self.flights}, "two steps of one group"
        b, q = step.tokens.shape
        assert len(set(step.slots.tolist())) == b <= self.batch.slots
        assert int(step.counts.max()) == q and int(step.counts.min()) >= 1
        assert int(step.counts.sum()) <= max(self.batch.prefill_chunk, b)
        if step.kind == "decode":
            assert q == 1
        drawn = [self._feed(step, row) for row in range(b)]
        self.flights.append((step.group, torch.tensor(drawn)))
        self.most_in_flight = max(self.most_in_flight, len(self.flights))
        self.kinds.append(step.kind)
        self.rows.append(b)

    def _feed(self, step: Step, row: int) -> int:
        start, count = int(step.starts[row]), int(step.counts[row])
        place = step.group, int(step.slots[row])
        if start == 0:
            self.slots[place] = []
        held = self.slots[place]
        assert len(held) == start, "tokens would be written where others are, or leave a gap"
        assert step.tokens[row, count:].eq(0).all()
        held += step.tokens[row, :count].tolist()
        assert len(held) <= self.batch.max_length
        return next_token(held)

    def collect(self) -> torch.Tensor:
        return self.flights.popleft()[1]

    def close(self) -> None: ...


def requests(count: int, seed: int = 0) -> list[Request]:
    draw = random.Random(seed)
    return [
        Request(
            index,
            str(index),
            Sampling(max_new_tokens=draw.randint(1, 30)),
            " ".join(str(draw.randint(1, 90)) for _ in range(draw.randint(1, 30))),
        )
        for index in range(count)
    ]


def answer(request: Request, context: int = 64) -> Generation:
    """What a request's row has to be."""
    assert request.prompt is not None
    prompt = [int(word) for word in request.prompt.split()]
    made: list[int] = []
    limit = min(request.sampling.max_new_tokens, context - len(prompt))
    while len(made) < limit and EOS not in made:
        made.append(next_token(prompt + made))
    stopped = EOS in made
    return Generation(
        request.index,
        request.id,
        " ".join(map(str, made[: len(made) - stopped])),
        "stop" if stopped else "length",
        len(prompt),
        len(made),
    )


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize(
    ("groups", "slots", "chunk"), [(1, 1, 4), (1, 5, 16), (4, 3, 7), (6, 2, 1)]
)
def test_every_row_once_and_right(depth: int, groups: int, slots: int, chunk: int) -> None:
    batch = Batch(groups=groups, slots=slots, max_length=64, prefill_chunk=chunk)
    model = Ring(batch, depth)
    rows = requests(40)
    found: list[Generation | Failure] = []
    engine = Engine(model, Words(), batch)
    assert engine.run(iter([*rows, None]).__next__, found.append)
    assert sorted(found, key=lambda row: row.index) == [answer(row) for row in rows]
    assert model.most_in_flight == groups
    assert not model.flights
    assert engine.counters.rows_done == 40
    assert engine.counters.steps == len(model.kinds)
    assert engine.counters.completion_tokens == sum(answer(row).completion_tokens for row in rows)
    assert engine.counters.prompt_tokens == sum(answer(row).prompt_tokens for row in rows)


def test_few_rows_are_spread_over_the_groups() -> None:
    batch = Batch(groups=3, slots=4, max_length=64, prefill_chunk=64)
    model = Ring(batch, 3)
    Engine(model, Words(), batch).run(iter([*requests(6), None]).__next__, lambda row: None)
    assert model.rows[:3] == [2, 2, 2]


def test_slots_are_refilled_while_neighbours_decode() -> None:
    batch = Batch(groups=1, slots=4, max_length=64, prefill_chunk=64)
    model = Ring(batch, 1)
    rows = [
        Request(i, str(i), Sampling(max_new_tokens=4 + 13 * (i % 4)), f"{i + 1} {i + 3}")
        for i in range(30)
    ]
    Engine(model, Words(), batch).run(iter([*rows, None]).__next__, lambda row: None)
    last = max(step for step, kind in enumerate(model.kinds) if kind == "prefill")
    decoding = [
        count
        for kind, count in zip(model.kinds[:last], model.rows[:last], strict=True)
        if kind == "decode"
    ]
    assert decoding and set(decoding) == {4}


def test_decoding_is_not_starved_by_rows_that_end_with_their_prefill() -> None:
    batch = Batch(groups=1, slots=3, max_length=64, prefill_chunk=64)
    model = Ring(batch, 1)
    long = Request(0, "0", Sampling(max_new_tokens=20), "1 2")
    short = [Request(i, str(i), Sampling(max_new_tokens=1), "5 6 7") for i in range(1, 200)]
    order: list[int] = []
    Engine(model, Words(), batch).run(
        iter([long, *short, None]).__next__, lambda row: order.append(row.index)
    )
    assert order.index(0) < 150


def test_nothing_is_pulled_before_a_slot_is_free() -> None:
    batch = Batch(groups=2, slots=2, max_length=64, prefill_chunk=64)
    pulled, done = 0, 0

    def rows() -> Iterator[Request | None]:
        nonlocal pulled
        for row in requests(20):
            assert pulled - done < 4
            pulled += 1
            yield row
        yield None

    def emit(row: Generation | Failure) -> None:
        nonlocal done
        done += 1

    assert Engine(Ring(batch, 2), Words(), batch).run(rows().__next__, emit)
    assert done == 20


def test_a_drained_engine_gives_up_what_is_in_flight_and_can_run_again() -> None:
    batch = Batch(groups=2, slots=3, max_length=64, prefill_chunk=8)
    model = Ring(batch, 2)
    engine = Engine(model, Words(), batch)
    rows = requests(30)
    found: list[Generation | Failure] = []
    assert not engine.run(iter(rows).__next__, found.append, lambda: len(found) >= 10)
    assert 10 <= len(found) < 30
    assert not model.flights
    done = {row.index for row in found}
    rest = [row for row in rows if row.index not in done]
    assert engine.run(iter([*rest, None]).__next__, found.append)
    assert sorted(found, key=lambda row: row.index) == [answer(row) for row in rows]


def test_a_row_that_cannot_be_encoded_takes_no_slot() -> None:
    class Picky(Words):
        def encode(self, request: Request) -> list[int]:
            from launcher.input.codes import RowError

            if request.index % 3 == 0:
                raise RowError("too_long", "by far")
            return super().encode(request)

    batch = Batch(groups=1, slots=2, max_length=64, prefill_chunk=8)
    found: list[Generation | Failure] = []
    engine = Engine(Ring(batch, 1), Picky(), batch)
    assert engine.run(iter([*requests(9), None]).__next__, found.append)
    failed = [row for row in found if isinstance(row, Failure)]
    assert [(row.index, row.code, row.message) for row in failed] == [
        (index, "too_long", "by far") for index in (0, 3, 6)
    ]
    assert (engine.counters.rows_done, engine.counters.rows_failed) == (6, 3)
