"""The engine's loop with predicted times: against closed forms, and against the engine itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from launcher.bench.host import _NoText
from launcher.engine.engine import Engine
from launcher.model.step import Step
from launcher.plan.course import Held, Line, Load, Replayed
from launcher.plan.plan import Batch
from launcher.plan.replay import replay
from launcher.plan.workload import Workload, bytes_per_token
from launcher.records import Demand, Request, Sampling

BATCH = Batch(groups=1, slots=8, max_length=1000, prefill_chunk=64)


def second(load: Load) -> tuple[float, float]:
    """Every step takes a second."""
    return 1.0, 0.0


def line(stages: int, in_rounds: bool = False, **more: Any) -> Line:
    links: list[Callable[[Load], float]] = [lambda _: 0.0] * stages
    return Line([second] * stages, links, 0.0, in_rounds, **more)


def test_one_batch_takes_a_step_per_token() -> None:
    """Eight prompts of 8 tokens fit in one step, which draws their first tokens."""
    found = replay(line(1), BATCH, Workload(((8, 10),), 8))
    assert found.seconds == 10
    assert found.tokens == 80
    assert found.busy == (1.0,)


def test_a_prompt_longer_than_a_step_takes_several() -> None:
    found = replay(line(1), replace_slots(1), Workload(((200, 5),), 1))
    assert found.seconds == 4 + 4  # 64 + 64 + 64 + 8 tokens, the last step draws; four more tokens


@pytest.mark.parametrize(
    ("groups", "in_rounds", "busy"),
    [(1, False, 1 / 4), (4, False, 1.0), (8, False, 1.0), (4, True, 4 / 7), (8, True, 8 / 11)],
)
def test_schedules_reach_their_closed_forms(groups: int, in_rounds: bool, busy: float) -> None:
    """Four equal stages: 1/K, min(1, M/K) and M / (M + K - 1); filling and draining are short beside 500 tokens."""
    batch = BATCH.model_copy(update={"groups": groups})
    found = replay(line(4, in_rounds), batch, Workload(((1, 500),), 8 * groups))
    assert found.utilization == pytest.approx(busy, abs=0.015)
    assert sum(found.bubbles()) / 4 == pytest.approx(1 - found.utilization, abs=0.03)


class Asked:
    """A stage that is asked once per step, however many it stands for; like a stage with measured costs it has no hash."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, seconds: float) -> None:
        self.seconds, self.loads = seconds, list[Load]()

    def __call__(self, load: Load) -> tuple[float, float]:
        self.loads.append(load)
        return self.seconds, 0.0


def test_stages_that_are_alike_are_asked_once() -> None:
    slow, quick = Asked(2.0), Asked(1.0)
    links: list[Callable[[Load], float]] = [lambda _: 0.0, lambda _: 0.5, lambda _: 0.0]
    found = replay(Line([quick, slow, quick], links, 0.0), BATCH, Workload(((8, 10),), 8))
    assert found.seconds == pytest.approx(10 * (1 + 2 + 1 + 0.5))
    assert len(quick.loads) == len(slow.loads) == 10
    assert found.busy == pytest.approx((1 / 4.5, 2 / 4.5, 1 / 4.5))


def test_of_rows_to_score_every_token_of_a_continuation_meets_the_head() -> None:
    stage, alone = Asked(1.0), [lambda _: 0.0]
    demand = Demand(8, 100, 60, sample=((100, 1),), bytes_per_token=1.0, scored_bytes=60.0)
    work = Workload.of(demand, 32_000, 1000)
    replay(Line([stage], alone, 0.0), BATCH, work)
    assert sum(load.fed for load in stage.loads) == 8 * 100
    assert sum(load.rows for load in stage.loads) == pytest.approx(8 * 60)
    answers = replace(demand, scored_bytes=0.0, answers=2.5)
    assert Workload.of(answers, 32_000, 1000).rows == 20


def test_reading_hides_behind_rounds_or_adds_to_them() -> None:
    work, batch = Workload(((1, 100),), 16), BATCH.model_copy(update={"groups": 2})

    def held(slowed: float, weights: float, moved: float) -> Replayed:
        found = Held(slowed, weights, moved)
        return replay(line(1, True, held=lambda computed: found), batch, work)

    assert held(0, 0, 0).seconds == pytest.approx(200, rel=0.01)
    reading = held(1, 2, 3)
    assert reading.seconds == pytest.approx(800, rel=0.01)
    assert reading.rounds == 100
    found = reading.of_stage(0)
    assert found["utilization"] == pytest.approx(3 / 8, rel=0.01)
    assert found["weights"] == pytest.approx(2 / 8, rel=0.01)
    assert found["transfer"] == pytest.approx(3 / 8, rel=0.01)
    assert found["prefill_s"] + found["decode_s"] == pytest.approx(300, rel=0.01)
    assert found["prefill_s"] == pytest.approx(3, rel=0.01)  # the first round alone has prompts


def test_a_long_run_goes_on_as_its_middle_did() -> None:
    work = Workload(((8, 50), (30, 10), (60, 90)), 600)
    most = replay(line(1), BATCH, replace(work, rows=64))
    long = replay(line(1), BATCH, work)
    assert long.tokens == work.new_tokens == 30_000
    assert long.tokens_per_s == pytest.approx(most.tokens_per_s, rel=0.15)
    assert long.tokens_per_s > most.tokens_per_s  # it drains but once


def test_many_steps_are_played_as_few() -> None:
    work = Workload(((100, 20_000),), 16)
    found = replay(line(1), BATCH, work)
    assert found.seconds == pytest.approx(2 * 20_000, rel=0.02)


class Counting:
    """A StepModel that keeps what its steps fed."""

    depth = 1

    def __init__(self) -> None:
        self.steps: list[tuple[int, int]] = []
        self._rows: deque[int] = deque()

    def launch(self, step: Step) -> None:
        counts = step.counts.tolist()
        self.steps.append((len(counts), sum(counts)))
        self._rows.append(len(counts))

    def collect(self) -> torch.Tensor:
        return torch.zeros(self._rows.popleft(), dtype=torch.int64)

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("groups", "slots", "chunk"), [(1, 8, 64), (2, 4, 64), (3, 5, 128)])
def test_steps_are_those_of_the_engine(groups: int, slots: int, chunk: int) -> None:
    new = [5 + 7 * row % 40 for row in range(28)]
    batch = Batch(groups=groups, slots=slots, max_length=96, prefill_chunk=chunk)
    model, seen = Counting(), []
    requests = iter(
        Request(row, str(row), Sampling(max_new_tokens=n), "") for row, n in enumerate(new)
    )
    Engine(model, _NoText(), batch).run(lambda: next(requests, None), lambda record: None)

    def note(load: Load) -> tuple[float, float]:
        seen.append((load.rows, load.decoding + load.fed))
        return 1.0, 0.0

    work = Workload(tuple((32, n) for n in new), len(new))
    played = Line([note], [lambda _: 0.0], 0.0)
    replay(played, batch, work)
    assert seen == model.steps


def test_a_message_takes_a_stages_time_and_is_not_computing() -> None:
    work = Workload(((16, 20),), 8)
    quick, slow = (replay(line(2, message_s=each), BATCH, work) for each in (0.0, 0.25))
    assert slow.seconds > quick.seconds + 0.25 * quick.rounds
    assert [stage.busy for stage in slow.stages] == [stage.busy for stage in quick.stages]


def replace_slots(slots: int) -> Batch:
    return BATCH.model_copy(update={"slots": slots})


def test_lengths_follow_the_input() -> None:
    demand = Demand(1000, 4000, 64, sample=((400, 64), (4000, 10)), bytes_per_token=4.0)
    work = Workload.of(demand, 32_000, 2000)
    assert work.lengths == ((100, 64), (1000, 10))
    assert work.new_tokens == 37_000
    assert Workload.of(demand, 32_000, 500).lengths == ((100, 64), (499, 1))
    unknown = Workload.of(Demand(10, 4000, 64), 32_000, 2000)
    assert unknown.lengths == ((502, 64),)  # 2000 bytes


def test_larger_vocabularies_have_longer_tokens() -> None:
    assert bytes_per_token(256) == 1
    assert bytes_per_token(32_000) == pytest.approx(4.0, abs=0.02)
    assert bytes_per_token(128_256) == 4.5
