"""SlotCache: rows of their own length, growth, and rows that move to the front."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch

from launcher.model import cache as cache_module
from launcher.model.cache import Packed, SlotCache, Together

HEADS, WIDTH = 2, 3


def states(*rows: list[int]) -> torch.Tensor:
    """Keys (b, heads, q, width) that are their token's number everywhere."""
    return (
        torch.tensor(rows, dtype=torch.float32)[:, None, :, None]
        .expand(-1, HEADS, -1, WIDTH)
        .clone()
    )


def update(
    cache: SlotCache, new: torch.Tensor, layer: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    return cache.update(new, -new, layer)


def held(cache: SlotCache, slot: int, length: int) -> list[float]:
    """The numbers of the tokens in a slot."""
    layer = cache.layers[0]
    row = cache.rows([slot])[0]
    assert torch.equal(layer.keys[row, :, :length], -layer.values[row, :, :length])
    return layer.keys[row, 0, :length, 0].tolist()


def test_prompts_laid_end_to_end_land_in_their_slots() -> None:
    cache = SlotCache(layers=2, slots=4, max_length=10)
    cache.begin(Packed([3, 1], [0, 0], [2, 3]))
    new = states([1, 2, 3, 4, 5])
    for layer in (0, 1):
        keys, values = update(cache, new, layer)
        assert torch.equal(keys, new) and torch.equal(values, -new)
    assert held(cache, 3, 3) == [1, 2, 0]
    assert held(cache, 1, 3) == [3, 4, 5]
    cache.begin(Packed([1, 3], [3, 2], [1, 2]))
    keys, _ = update(cache, states([6, 7, 8]))
    assert keys[0, 0, :, 0].tolist() == [3, 4, 5, 6, 1, 2, 7, 8]


def test_one_token_each_is_written_where_its_row_ends_and_read_in_place() -> None:
    cache = SlotCache(layers=1, slots=3, max_length=10)
    cache.begin(Packed([0, 1], [0, 0], [3, 1]))
    update(cache, states([1, 2, 3, 9]))
    cache.begin(Together(torch.tensor([3, 1])))
    keys, _ = update(cache, states([4], [8]))
    assert keys.shape == (2, HEADS, 4, WIDTH)
    assert keys[:, 0, :, 0].tolist() == [[1, 2, 3, 4], [9, 8, 0, 0]]
    assert keys.data_ptr() == cache.layers[0].keys.data_ptr()


def test_it_grows_by_blocks_up_to_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "BLOCK", 4)
    cache = SlotCache(layers=1, slots=2, max_length=10)
    sizes = []
    for position in range(10):
        cache.begin(Together(torch.tensor([position])))
        update(cache, states([position]))
        sizes.append(cache.layers[0].keys.shape[2])
    assert sizes == [4] * 4 + [8] * 4 + [10] * 2
    assert held(cache, 0, 10) == list(range(10))
    with pytest.raises(ValueError, match="11 positions in slots of 10"):
        cache.begin(Together(torch.tensor([10])))


def test_a_row_that_begins_anew_is_cleared() -> None:
    cache = SlotCache(layers=1, slots=2, max_length=10)
    cache.begin(Packed([0, 1], [0, 0], [3, 3]))
    update(cache, torch.full((1, HEADS, 6, WIDTH), torch.nan))
    cache.begin(Packed([0], [0], [1]))
    update(cache, states([1]))
    assert held(cache, 0, 10) == [1] + [0] * 9
    cache.begin(Together(torch.tensor([1, 0])))
    update(cache, states([2], [7]))
    assert held(cache, 0, 10) == [1, 2] + [0] * 8
    assert held(cache, 1, 10) == [7] + [0] * 9


def test_the_slots_of_a_step_are_gathered_at_the_front_and_keep_what_they_hold() -> None:
    cache = SlotCache(layers=2, slots=5, max_length=4)
    cache.begin(Packed([0, 1, 2, 3, 4], [0] * 5, [1] * 5))
    for layer in (0, 1):
        update(cache, states([10, 11, 12, 13, 14]), layer)
    for groups in ([[1, 3, 4]], [[4], [1]], [[0, 2], [1, 4, 3]], [[3, 1], [], [2, 0], [4]]):
        cache.gather(groups)
        rows = [cache.rows(slots) for slots in groups]
        assert [sorted(of) for of in rows] == _ranges([len(of) for of in groups])
        assert [held(cache, slot, 1) for slot in range(5)] == [[10], [11], [12], [13], [14]]
        cache.gather(groups)
        assert [cache.rows(slots) for slots in groups] == rows


def _ranges(counts: list[int]) -> list[list[int]]:
    ends = list(accumulate(counts))
    return [list(range(end - count, end)) for end, count in zip(ends, counts, strict=True)]


def test_what_the_model_asks_it_for_masks_of_its_own() -> None:
    cache = SlotCache(layers=1, slots=2, max_length=10)
    cache.begin(Packed([1], [3], [4]))
    assert cache.get_seq_length() == 3
    assert cache.get_mask_sizes(4, 0) == (7, 0)
    assert cache.get_max_length() == 10
