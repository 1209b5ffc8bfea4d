"""Drawing the next token: greedy, or by counter-based noise, so that a draw depends on nothing but the
row's own logits, seed and position. It runs where the logits are."""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from launcher.model.step import LogitBias, Step, StepSampling

NOT_A_NUMBER = -1  # in place of a token where the logits hold NaN
NO_TOKEN = -1  # among the likeliest ones where the vocabulary has fewer

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # as int64; torch multiplies modulo 2^64
_MIX = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)
_COLDEST = 1e-5  # a lower temperature is taken for this one: logits divided by it are still finite


def outcome(result: torch.Tensor, step: Step) -> torch.Tensor:
    """What ``step`` yields, of what the last stage's runner returned for it."""
    if step.scoring is not None:
        return result
    tokens = draw(result if step.bias is None else biased(result, step.bias), step.sampling)
    return tokens if step.tops is None else with_tops(result, tokens, step.tops)


def with_tops(logits: torch.Tensor, tokens: torch.Tensor, tops: int) -> torch.Tensor:
    """(b, 2 + 2 * tops) float64: tokens, their log-probabilities, the likeliest tokens, theirs. Those of the model:
    temperature, limits and biases do not count."""
    logs = logits.float().log_softmax(dim=-1)
    own = logs.gather(1, tokens.clamp(min=0)[:, None])
    known = min(tops, logs.shape[1])
    best, rest = logs.topk(known, dim=-1), (0, tops - known)
    likeliest = pad(best.indices, rest, value=NO_TOKEN), pad(best.values, rest, value=-torch.inf)
    return torch.cat([tokens[:, None].double(), own, *likeliest], dim=1)


def biased(logits: torch.Tensor, bias: LogitBias) -> torch.Tensor:
    """``logits`` (b, vocabulary), in float32, with what ``bias`` adds."""
    device = logits.device
    places = bias.rows.to(device), bias.tokens.to(device)
    return logits.float().index_put(places, bias.values.float().to(device), accumulate=True)


def draw(logits: torch.Tensor, sampling: StepSampling | None) -> torch.Tensor:
    """Next tokens (b,) int64 for logits (b, vocabulary); NOT_A_NUMBER where a row's logits hold NaN.

    ``sampling`` holds CPU tensors, so choosing what to compute waits for no device.
    """
    best, tokens = logits.max(dim=-1)
    if sampling is not None:
        rows = sampling.temperature.gt(0).nonzero()[:, 0]
        if len(rows):
            index = rows.to(logits.device, non_blocking=True)
            tokens[index] = _sample(logits[index], _choose(sampling, rows))
    return tokens.masked_fill_(best.isnan(), NOT_A_NUMBER)


def _choose(sampling: StepSampling, rows: torch.Tensor) -> StepSampling:
    return StepSampling(
        temperature=sampling.temperature[rows],
        top_p=sampling.top_p[rows],
        top_k=sampling.top_k[rows],
        seed=sampling.seed[rows],
        position=sampling.position[rows],
    )


def _sample(logits: torch.Tensor, sampling: StepSampling) -> torch.Tensor:
    """The largest of logits / temperature + Gumbel noise is a draw from their softmax (Gumbel, 1954).

    Unlike an inverse of the cumulative distribution it hardly depends on rounding: the same noise goes
    with the same token whatever the others weigh.
    """
    device = logits.device
    cold = sampling.temperature.clamp(min=_COLDEST).float()[:, None].to(device)
    scores = logits.float() / cold
    keys = mix(mix(sampling.seed) + sampling.position)[:, None].to(device)
    limited = (sampling.top_k > 0) & (sampling.top_k < logits.shape[1]) | (sampling.top_p < 1)
    if not limited.any():
        tokens = torch.arange(logits.shape[1], device=device)
        return (scores + gumbel(keys, tokens)).argmax(dim=-1)
    scores, tokens = _limit(scores, sampling)
    chosen = (scores + gumbel(keys, tokens)).argmax(dim=-1, keepdim=True)
    return tokens.gather(1, chosen)[:, 0]


def _limit(scores: torch.Tensor, sampling: StepSampling) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores from the highest down, and their tokens; -inf where top_k, and then top_p of what it left,
    takes a token out. The best token always stays."""
    vocabulary = scores.shape[1]
    top_k = sampling.top_k.where(sampling.top_k > 0, vocabulary).clamp(max=vocabulary)
    widest = int(top_k.max())
    if widest < vocabulary:
        scores, tokens = scores.topk(widest, dim=-1)
    else:
        scores, tokens = scores.sort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(widest, device=scores.device)
    scores = scores.masked_fill(ranks >= top_k[:, None].to(scores.device), -torch.inf)
    if sampling.top_p.lt(1).any():
        weights = scores.softmax(dim=-1)
        before = weights.cumsum(dim=-1) - weights
        beyond = before >= sampling.top_p[:, None].to(scores.device)
        scores = scores.masked_fill(beyond & (ranks > 0), -torch.inf)
    return scores, tokens


def gumbel(keys: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise, float32, for each pair of ``keys`` and ``tokens`` (int64, broadcast)."""
    bits = (mix(keys + tokens * _GOLDEN) >> 32) & 0xFFFFFFFF
    uniform = (bits.float() + 0.5) * 2.0**-32
    return -torch.log(-torch.log1p(-uniform))


def mix(state: torch.Tensor) -> torch.Tensor:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014) on int64, seen as 64 bits without a sign."""
    state = state + _GOLDEN
    state = (state ^ (state >> 30 & 2**34 - 1)) * _MIX[0]
    state = (state ^ (state >> 27 & 2**37 - 1)) * _MIX[1]
    return state ^ (state >> 31 & 2**33 - 1)
