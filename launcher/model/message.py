"""What stages tell each other: one message per step, so that a step costs one send per stage."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from launcher.job.spec import MOST_BIASED
from launcher.model.link import ENVELOPE
from launcher.model.step import MOST_ASKED, LogitBias, Scoring, Step, StepSampling
from launcher.plan.plan import Batch

HEADER = ENVELOPE + 7  # kind, rows, widest row, columns, log-probabilities asked for, tops, biases
KINDS = ("stop", "prefill", "decode")
_COLUMNS = 3  # words per row: slot, start, count
_SAMPLING = 5  # and where a row is sampled: temperature, top_p, top_k, seed, position
_SCORING = 2  # words per token of a step that scores, its base and shift; and per token asked about
_BIAS = 3  # and where logits are changed, per such logit: row, token, value
_NONE = -1  # in place of a number of log-probabilities, of tops, or of biases


@dataclass(frozen=True)
class Message:
    """A step on its way down the stages. ``hidden`` (t, d) are the states of its valid tokens, end to end.

    As received, ``hidden`` is a view of the buffer, and ``step.tokens`` has its shape (b, q) but no tokens.
    """

    step: Step
    number: int
    hidden: torch.Tensor

    def announced(self) -> Step:
        """The step of a message that was made by ``announce``, with its tokens."""
        step = self.step
        tokens = torch.zeros(step.tokens.shape, dtype=torch.int64)
        tokens[torch.arange(tokens.shape[1]) < step.counts[:, None]] = self.hidden[:, 0]
        return replace(step, tokens=tokens)


@dataclass(frozen=True)
class Form:
    """The layout of messages between the stages of a model: hidden states are ``width`` numbers of ``dtype``."""

    width: int
    dtype: torch.dtype

    def buffer(self, batch: Batch) -> torch.Tensor:
        """Room for the longest message that ``batch`` can lead to."""
        tokens = max(batch.slots, batch.prefill_chunk)
        # A row that is drawn is longer than the MOST_ROWS of a slot that scores. What no message fills is never touched,
        # and so takes no memory: a penalty for every token of every row is rare.
        rows = batch.slots * (_COLUMNS + _SAMPLING + _BIAS * (MOST_BIASED + batch.max_length))
        scoring = tokens * _SCORING * (1 + MOST_ASKED)
        return torch.empty(HEADER + rows + scoring + self._words(tokens), dtype=torch.int64)

    def pack(self, message: Message) -> torch.Tensor:
        """The message on the CPU, (n,) int64; its hidden states may be on any device."""
        step, hidden = message.step, message.hidden
        columns = [step.slots, step.starts, step.counts, *_columns(step.sampling)]
        asked = _NONE if step.scoring is None else step.answers
        of = [0, step.group, message.number, KINDS.index(step.kind), *step.tokens.shape]
        tops = _NONE if step.tops is None else step.tops
        biases = _NONE if step.bias is None else len(step.bias.rows)
        head = torch.tensor([*of, len(columns), asked, tops, biases])
        words = torch.cat([head, *columns, *_scoring_parts(step.scoring), *_bias_parts(step.bias)])
        data = torch.empty(len(words) + self._words(len(hidden)), dtype=torch.int64)
        data[: len(words)] = words
        self._hidden(data[len(words) :], len(hidden)).copy_(hidden)
        return data

    def unpack(self, data: torch.Tensor) -> Message | None:
        """The message at the head of ``data``; None if it is ``stop``."""
        _, group, number, kind, rows, widest, width, asked, tops, biases = data[:HEADER].tolist()
        if KINDS[kind] == "stop":
            return None
        end = HEADER + rows * width
        # A copy: the next message is received into the same buffer.
        columns = list(data[HEADER:end].view(width, rows).clone())
        slots, starts, counts = columns[:_COLUMNS]
        tokens, scoring, bias = int(counts.sum()), None, None
        if asked != _NONE:
            sizes = [tokens, tokens, asked, asked]
            scoring = Scoring(*data[end : end + sum(sizes)].clone().split(sizes))
            end += sum(sizes)
        if biases != _NONE:
            of_row, of_token, value = data[end : end + _BIAS * biases].clone().view(_BIAS, biases)
            bias = LogitBias(of_row, of_token, value.view(torch.float64))
            end += _BIAS * biases
        step = Step(
            group=group,
            kind=KINDS[kind],
            slots=slots,
            tokens=torch.zeros(1, dtype=torch.int64).expand(rows, widest),
            starts=starts,
            counts=counts,
            sampling=_sampling(columns[_COLUMNS:]),
            scoring=scoring,
            tops=None if tops == _NONE else tops,
            bias=bias,
        )
        return Message(step, number, self._hidden(data[end:], tokens))

    def _words(self, tokens: int) -> int:
        return -(-tokens * self.width * self.dtype.itemsize // 8)

    def _hidden(self, data: torch.Tensor, tokens: int) -> torch.Tensor:
        return data.view(self.dtype)[: tokens * self.width].view(tokens, self.width)


STEPS_FORM = Form(
    1, torch.int64
)  # of steps that are told with their tokens in place of hidden states


def announce(step: Step, number: int) -> torch.Tensor:
    """``step`` for a rank that computes the same: its tokens and no sampling, as only one rank draws."""
    told = replace(step, sampling=None, tops=None, bias=None)
    return STEPS_FORM.pack(Message(told, number, step.valid_tokens()[:, None]))


def stop() -> torch.Tensor:
    """The message that ends serving."""
    return torch.zeros(HEADER, dtype=torch.int64)


def answer(message: Message, found: torch.Tensor) -> torch.Tensor:
    """What the last stage sends to the first: what a step yields."""
    head = torch.tensor([0, message.step.group, message.number])
    if found.is_floating_point():
        found = found.to("cpu", torch.float64).flatten().view(torch.int64)
    return torch.cat([head, found.to("cpu", torch.int64)])


def answered(data: torch.Tensor, step: Step) -> torch.Tensor:
    """What ``step`` yields, of the message that ``answer`` made."""
    found = data[ENVELOPE:]
    if step.tops is not None:
        return found.view(torch.float64).view(len(step.slots), -1)
    return found if step.scoring is None else found.view(torch.float64)


def _scoring_parts(scoring: Scoring | None) -> list[torch.Tensor]:
    if scoring is None:
        return []
    return [scoring.bases, scoring.shifts, scoring.places, scoring.targets]


def _bias_parts(bias: LogitBias | None) -> list[torch.Tensor]:
    return [] if bias is None else [bias.rows, bias.tokens, bias.values.view(torch.int64)]


def _columns(sampling: StepSampling | None) -> list[torch.Tensor]:
    if sampling is None:
        return []
    reals = [sampling.temperature, sampling.top_p]
    wholes = [sampling.top_k, sampling.seed, sampling.position]
    return [*(real.view(torch.int64) for real in reals), *wholes]


def _sampling(columns: list[torch.Tensor]) -> StepSampling | None:
    if not columns:
        return None
    temperature, top_p, top_k, seed, position = columns
    return StepSampling(
        temperature=temperature.view(torch.float64),
        top_p=top_p.view(torch.float64),
        top_k=top_k,
        seed=seed,
        position=position,
    )
