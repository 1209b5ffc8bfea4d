"""What stages tell each other: one message per step, so that a step costs one send per stage."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from launcher.model.link import ENVELOPE
from launcher.model.step import Step, StepSampling
from launcher.plan.plan import Batch

HEADER = ENVELOPE + 4  # kind, rows, widest row, columns
KINDS = ("stop", "prefill", "decode")
_COLUMNS = 3  # words per row: slot, start, count
_SAMPLING = 5  # and where a row is sampled: temperature, top_p, top_k, seed, position


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
        rows = HEADER + batch.slots * (_COLUMNS + _SAMPLING)
        return torch.empty(rows + self._words(tokens), dtype=torch.int64)

    def pack(self, message: Message) -> torch.Tensor:
        """The message on the CPU, (n,) int64; its hidden states may be on any device."""
        step, hidden = message.step, message.hidden
        columns = [step.slots, step.starts, step.counts, *_columns(step.sampling)]
        rows, widest = step.tokens.shape
        head = [0, step.group, message.number, KINDS.index(step.kind), rows, widest, len(columns)]
        words = torch.cat([torch.tensor(head), *columns])
        data = torch.empty(len(words) + self._words(len(hidden)), dtype=torch.int64)
        data[: len(words)] = words
        self._hidden(data[len(words) :], len(hidden)).copy_(hidden)
        return data

    def unpack(self, data: torch.Tensor) -> Message | None:
        """The message at the head of ``data``; None if it is ``stop``."""
        _, group, number, kind, rows, widest, width = data[:HEADER].tolist()
        if KINDS[kind] == "stop":
            return None
        end = HEADER + rows * width
        # A copy: the next message is received into the same buffer.
        columns = list(data[HEADER:end].view(width, rows).clone())
        slots, starts, counts = columns[:_COLUMNS]
        step = Step(
            group=group,
            kind=KINDS[kind],
            slots=slots,
            tokens=torch.zeros(1, dtype=torch.int64).expand(rows, widest),
            starts=starts,
            counts=counts,
            sampling=_sampling(columns[_COLUMNS:]),
        )
        return Message(step, number, self._hidden(data[end:], int(counts.sum())))

    def _words(self, tokens: int) -> int:
        return -(-tokens * self.width * self.dtype.itemsize // 8)

    def _hidden(self, data: torch.Tensor, tokens: int) -> torch.Tensor:
        return data.view(self.dtype)[: tokens * self.width].view(tokens, self.width)


STEPS_FORM = Form(
    1, torch.int64
)  # of steps that are told with their tokens in place of hidden states


def announce(step: Step, number: int) -> torch.Tensor:
    """``step`` for a rank that computes the same: its tokens and no sampling, as only one rank draws."""
    told = replace(step, sampling=None)
    return STEPS_FORM.pack(Message(told, number, step.valid_tokens()[:, None]))


def stop() -> torch.Tensor:
    """The message that ends serving."""
    return torch.zeros(HEADER, dtype=torch.int64)


def answer(message: Message, tokens: torch.Tensor) -> torch.Tensor:
    """What the last stage sends to the first: the tokens (b,) of a step."""
    head = torch.tensor([0, message.step.group, message.number])
    return torch.cat([head, tokens.to("cpu", torch.int64)])


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
