"""Sampling: the right distribution, and noise that comes from seed, position and token alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from launcher.model.sampling import NOT_A_NUMBER, draw, gumbel, mix
from launcher.model.step import StepSampling

VOCABULARY = 50
LOGITS = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(1)) * 2


def sampling(rows: int, **settings: Any) -> StepSampling:
    """Settings of ``rows`` rows: each a number for all, or one per row."""
    values = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "seed": 0, "position": 0} | settings
    whole = ("top_k", "seed", "position")
    return StepSampling(
        **{
            name: torch.as_tensor(
                value, dtype=torch.int64 if name in whole else torch.float64
            ).expand(rows)
            for name, value in values.items()
        }
    )


def frequencies(rows: int = 20_000, **settings: Any) -> torch.Tensor:
    """How often each token was drawn from LOGITS, over ``rows`` positions."""
    tokens = draw(
        LOGITS.expand(rows, -1), sampling(rows, **{"position": torch.arange(rows)} | settings)
    )
    return torch.bincount(tokens, minlength=VOCABULARY) / rows


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Total variation."""
    return float((one - other).abs().sum() / 2)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_frequencies_are_those_of_softmax(temperature: float) -> None:
    expected = (LOGITS / temperature).softmax(0)
    # A fair sample of this size is off by about sqrt(tokens / rows) / 2.5 = 0.02.
    assert distance(frequencies(temperature=temperature), expected) < 0.025


def test_seeds_are_as_good_a_source_of_noise_as_positions() -> None:
    found = frequencies(seed=torch.arange(20_000), position=7)
    assert distance(found, LOGITS.softmax(0)) < 0.025


def test_chi_square_of_the_draws() -> None:
    rows = 20_000
    expected = LOGITS.softmax(0) * rows
    often = expected >= 10
    found = frequencies(rows) * rows
    statistic = ((found - expected).square() / expected)[often].sum()
    freedom = int(often.sum()) - 1
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5


def test_noise_of_neighbours_is_not_correlated() -> None:
    keys = mix(mix(torch.tensor([0, 1, 2])[:, None]) + torch.arange(2000))
    noise = gumbel(keys[..., None], torch.arange(VOCABULARY)).flatten(1)
    assert torch.isfinite(noise).all()
    assert abs(float(noise.mean()) - 0.5772) < 0.01  # Euler's constant
    seeds = torch.corrcoef(noise)
    assert (seeds - torch.eye(3)).abs().max() < 0.02
    by_position = noise[0].view(2000, VOCABULARY)
    pairs = torch.stack([by_position[:-1].flatten(), by_position[1:].flatten()])
    assert torch.corrcoef(pairs)[0, 1].abs() < 0.02
    by_token = torch.stack([by_position[:, :-1].flatten(), by_position[:, 1:].flatten()])
    assert torch.corrcoef(by_token)[0, 1].abs() < 0.02


def test_top_k_keeps_the_k_best_in_proportion() -> None:
    best = LOGITS.topk(5)
    expected = torch.zeros(VOCABULARY)
    expected[best.indices] = best.values.softmax(0)
    assert distance(frequencies(top_k=5), expected) < 0.02


@pytest.mark.parametrize("top_p", [0.3, 0.8, 0.99])
def test_top_p_keeps_the_smallest_set_that_weighs_as_much(top_p: float) -> None:
    weights, tokens = LOGITS.softmax(0).sort(descending=True)
    count = int((weights.cumsum(0) < top_p).sum()) + 1
    expected = torch.zeros(VOCABULARY)
    expected[tokens[:count]] = weights[:count] / weights[:count].sum()
    found = frequencies(top_p=top_p)
    assert found[tokens[count:]].sum() == 0
    assert distance(found, expected) < 0.025


def test_top_p_is_of_what_top_k_left() -> None:
    weights, tokens = LOGITS.topk(3)
    weights = weights.softmax(0)
    found = frequencies(top_k=3, top_p=float(weights[0]) + 1e-4)
    assert set(found.nonzero()[:, 0].tolist()) == set(tokens[:2].tolist())


def test_a_tiny_top_p_and_a_tiny_temperature_are_greedy() -> None:
    best = int(LOGITS.argmax())
    assert frequencies(500, top_p=1e-9)[best] == 1
    assert frequencies(500, temperature=1e-30)[best] == 1


def test_a_draw_does_not_depend_on_the_other_rows() -> None:
    rows = 64
    logits = torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(2))
    settings = sampling(
        rows,
        temperature=torch.arange(rows) % 3 / 2,  # greedy rows among them
        top_k=torch.arange(rows) % 4 * 7,
        top_p=1 - torch.arange(rows) % 5 / 10,
        seed=torch.arange(rows) // 2,
        position=torch.arange(rows) * 1000,
    )
    together = draw(logits, settings)
    for row in range(rows):
        alone = StepSampling(**{n: v[row : row + 1] for n, v in vars(settings).items()})
        assert draw(logits[row : row + 1], alone)[0] == together[row]
    assert torch.equal(together[::3], logits[::3].argmax(-1))


def test_greedy_without_settings_takes_the_first_of_the_best() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0], [5.0, 1.0, 5.0]])
    assert draw(logits, None).tolist() == [1, 0]


def test_nan_is_told() -> None:
    logits = torch.tensor([[0.0, torch.nan], [0.0, 1.0]])
    assert draw(logits, None).tolist() == [NOT_A_NUMBER, 1]
    assert draw(logits, sampling(2)).tolist()[0] == NOT_A_NUMBER


def test_the_noise_is_the_same_in_every_version() -> None:
    """A resumed run must go on with the noise of the run that was interrupted."""
    assert mix(torch.tensor([0, 1, -1])).tolist() == [
        -2152535657050944081,
        -7995527694508729151,
        -1956407806741107680,
    ]
