"""Messages between stages: what is unpacked is what was packed, in buffers that are longer than the message."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from launcher.job.spec import MOST_BIASED
from launcher.model.link import ENVELOPE
from launcher.model.message import STEPS_FORM, Form, Message, announce, answer, answered, stop
from launcher.model.step import (
    MOST_ASKED,
    MOST_ROWS,
    LogitBias,
    Scoring,
    Step,
    StepSampling,
)
from launcher.plan.plan import Batch

BATCH = Batch(groups=2, slots=3, max_length=64, prefill_chunk=8)

SAMPLING = StepSampling(
    temperature=torch.tensor([0.0, 0.7, 1e-9], dtype=torch.float64),
    top_p=torch.tensor([1.0, 0.95, 0.1], dtype=torch.float64),
    top_k=torch.tensor([0, 50, 2**31 - 1]),
    seed=torch.tensor([0, 2**63 - 1, 7]),
    position=torch.tensor([5, 1, 3]),
)


def step(counts: list[int], sampling: StepSampling | None = None, kind: str = "prefill") -> Step:
    return Step(
        group=1,
        kind=kind,
        slots=torch.tensor([2, 0, 1]),
        tokens=torch.arange(3 * max(counts)).view(3, -1),
        starts=torch.tensor([3, 0, 40]),
        counts=torch.tensor(counts),
        sampling=sampling,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [1, 5, 64])
@pytest.mark.parametrize("sampling", [None, SAMPLING])
def test_round_trip(dtype: torch.dtype, width: int, sampling: StepSampling | None) -> None:
    form = Form(width, dtype)
    sent = step([2, 5, 1], sampling)
    hidden = torch.randn(8, width).to(dtype)
    data = form.pack(Message(sent, 9, hidden))
    buffer = form.buffer(BATCH)
    assert len(data) <= len(buffer), "a step as large as the batch allows"
    buffer[: len(data)] = data
    found = form.unpack(buffer)
    assert found is not None
    assert (found.number, found.step.group, found.step.kind) == (9, 1, "prefill")
    assert found.step.tokens.shape == sent.tokens.shape
    assert torch.equal(found.hidden, hidden)
    for name in ("slots", "starts", "counts"):
        assert torch.equal(getattr(found.step, name), getattr(sent, name))
    assert (found.step.sampling is None) == (sampling is None)
    if sampling is not None and found.step.sampling is not None:
        for field in fields(StepSampling):
            one, other = (getattr(s, field.name) for s in (found.step.sampling, sampling))
            assert one.dtype == other.dtype
            assert torch.equal(one, other)


def biases(entries: int) -> LogitBias:
    """Of ``entries`` tokens in each row of ``step``."""
    each = torch.arange(3 * entries)
    return LogitBias(each // entries, each % entries, each.double() / 7 - 100)


@pytest.mark.parametrize("entries", [1, MOST_BIASED + BATCH.max_length])
def test_changed_logits(entries: int) -> None:
    sent, form = replace(step([2, 5, 1], SAMPLING), bias=biases(entries)), Form(5, torch.bfloat16)
    hidden = torch.randn(8, 5).to(torch.bfloat16)
    data, buffer = form.pack(Message(sent, 9, hidden)), form.buffer(BATCH)
    assert len(data) <= len(buffer), "a step as large as the batch allows"
    buffer[: len(data)] = data
    found = form.unpack(buffer)
    assert found is not None and found.step.bias is not None and sent.bias is not None
    assert torch.equal(found.hidden, hidden)
    buffer.fill_(-1)
    for field in fields(LogitBias):
        one, other = (getattr(bias, field.name) for bias in (found.step.bias, sent.bias))
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    heard = STEPS_FORM.unpack(announce(sent, 9))
    assert heard is not None
    assert heard.step.bias is None, "only one rank draws"


def test_a_step_outlives_the_buffer_that_it_came_in() -> None:
    form = Form(4, torch.float32)
    data = form.pack(Message(step([1, 1, 1], SAMPLING, "decode"), 0, torch.ones(3, 4)))
    found = form.unpack(data)
    data.fill_(-1)
    assert found is not None
    assert found.step.starts.tolist() == [3, 0, 40]
    assert found.step.sampling is not None
    assert found.step.sampling.temperature.tolist() == SAMPLING.temperature.tolist()


def test_stop_and_answer() -> None:
    form = Form(4, torch.float32)
    buffer = form.buffer(BATCH)
    buffer[: len(stop())] = stop()
    assert form.unpack(buffer) is None
    message = Message(step([1, 1, 1]), 6, torch.ones(3, 4))
    assert answer(message, torch.tensor([7, -1, 9]))[:ENVELOPE].tolist() == [0, 1, 6]
    assert answer(message, torch.tensor([7, -1, 9]))[ENVELOPE:].tolist() == [7, -1, 9]


@pytest.mark.parametrize(("counts", "widest"), [([1, 1, 1], 1), ([4, 2, 3], 4), ([8], 8)])
def test_a_step_that_is_announced_has_its_tokens(counts: list[int], widest: int) -> None:
    valid = torch.arange(widest) < torch.tensor(counts)[:, None]
    told = Step(
        group=1,
        kind="decode" if widest == 1 else "prefill",
        slots=torch.arange(len(counts)),
        tokens=torch.randint(2, 400, (len(counts), widest)) * valid,
        starts=torch.zeros(len(counts), dtype=torch.int64),
        counts=torch.tensor(counts),
        sampling=SAMPLING if len(counts) == 3 else None,
    )
    buffer = STEPS_FORM.buffer(BATCH)
    data = announce(told, 9)
    buffer[: len(data)] = data
    message = STEPS_FORM.unpack(buffer)
    assert message is not None
    assert message.number == 9
    heard = message.announced()
    assert heard.sampling is None
    assert (heard.group, heard.kind) == (told.group, told.kind)
    for name in ("slots", "tokens", "starts", "counts"):
        assert torch.equal(getattr(heard, name), getattr(told, name))


def scoring_step(asked: int) -> Step:
    """As large as BATCH allows, but for what is asked: each slot in two rows."""
    rows = MOST_ROWS * BATCH.slots
    counts = torch.tensor([BATCH.prefill_chunk - rows + 1, *[1] * (rows - 1)])
    tokens = torch.randint(2, 400, (rows, int(counts.max())))
    each = torch.arange(BATCH.prefill_chunk)
    many = torch.arange(asked)
    return Step(
        group=0,
        kind="prefill",
        slots=torch.arange(rows) // MOST_ROWS,
        tokens=tokens * (torch.arange(tokens.shape[1]) < counts[:, None]),
        starts=torch.arange(rows),
        counts=counts,
        scoring=Scoring(each + 50, each + 60, many % BATCH.prefill_chunk, many + 70),
    )


@pytest.mark.parametrize("asked", [0, 3, MOST_ASKED * BATCH.prefill_chunk])
def test_a_step_that_scores(asked: int) -> None:
    sent, form = scoring_step(asked), Form(5, torch.float32)
    hidden = torch.randn(BATCH.prefill_chunk, 5)
    for data, of in (
        (form.pack(Message(sent, 3, hidden)), form),
        (announce(sent, 3), STEPS_FORM),
    ):
        buffer = of.buffer(BATCH)
        assert len(data) <= len(buffer), "a step as large as the batch allows"
        buffer[: len(data)] = data
        message = of.unpack(buffer)
        assert message is not None
        if of is form:
            assert torch.equal(message.hidden, hidden)
        else:
            assert torch.equal(message.announced().tokens, sent.tokens)
        buffer.fill_(-1)
        assert message.step.scoring is not None and sent.scoring is not None
        assert message.step.answers == asked
        for field in fields(Scoring):
            one, other = (getattr(s, field.name) for s in (message.step.scoring, sent.scoring))
            assert torch.equal(one, other)


def test_log_probabilities_are_answered_exactly() -> None:
    sent = scoring_step(3)
    found = torch.tensor([-0.1, -1e-9, torch.nan], dtype=torch.float32)
    data = answer(Message(sent, 6, torch.ones(1, 1)), found)
    assert data[:ENVELOPE].tolist() == [0, 0, 6]
    assert torch.equal(answered(data, sent)[:2].float(), found[:2])
    assert answered(data, sent)[2].isnan()
