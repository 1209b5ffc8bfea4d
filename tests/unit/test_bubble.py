"""Accounting: the shares of a window add up to one, and of known schedules are what theory says."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from launcher.measure.bubble import SHARES, account, shares
from launcher.measure.spans import COMPUTE, KINDS, LOADING, Recorder
from launcher.measure.timeline import SPAN, Spans, Timeline, read_timelines
from launcher.records import Attempt

Span = tuple[str, float, float]  # kind, start, end


def timeline(rank: int, spans: list[Span], stage: int | None = None) -> Timeline:
    rows = [
        (start, end, KINDS.index(kind), rank if stage is None else stage, 0, 0)
        for kind, start, end in spans
    ]
    return Timeline(rank, 0, "node", Attempt(0, 1), np.array(rows, SPAN), {})


def account_of(*ranks: list[Span], until: float | None = None) -> list[dict[str, float]]:
    """Seconds by share of each rank, whose only stage has the rank's number."""
    result = account([timeline(rank, spans) for rank, spans in enumerate(ranks)], until)
    return [
        dict(zip(SHARES, result[rank, rank].tolist(), strict=True)) for rank in range(len(ranks))
    ]


def nonzero(seconds: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in seconds.items() if value}


def simulate(schedule: str, stages: int, groups: int, tokens: int) -> list[list[Span]]:
    """The decode spans of each stage when ``groups`` micro-batches make ``tokens`` each, one second per step
    and stage, nothing else taking time."""
    spans: list[list[Span]] = [[] for _ in range(stages)]
    free = [0.0] * stages  # when a stage is next idle
    ready = [0.0] * groups  # when a group's next token may enter stage 0
    for token in range(tokens):
        for group in range(groups):
            now = 0.0 if token + group == 0 else ready[group]
            for stage in range(stages):
                start = max(now, free[stage])
                now = free[stage] = start + 1
                spans[stage].append(("decode", start, now))
            ready[group] = now
        if schedule == "gpipe":  # the pipeline drains before any group goes on
            ready = [max(ready)] * groups
    return spans


@pytest.mark.parametrize("stages", [2, 4, 8])
def test_naive_keeps_one_stage_in_k_busy(stages: int) -> None:
    result = account([timeline(r, s) for r, s in enumerate(simulate("naive", stages, 1, 50))])
    assert np.mean([shares(s)["busy"] for s in result.values()]) == pytest.approx(1 / stages)
    idle = [shares(s)["bubble"] + shares(s)["no_work"] for s in result.values()]
    assert np.mean(idle) == pytest.approx((stages - 1) / stages)


@pytest.mark.parametrize("stages", [2, 4, 8])
@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_gpipe_is_busy_for_m_of_m_plus_k_minus_1(stages: int, groups: int) -> None:
    result = account([timeline(r, s) for r, s in enumerate(simulate("gpipe", stages, groups, 50))])
    busy = groups / (groups + stages - 1)
    for seconds in result.values():
        assert shares(seconds)["busy"] == pytest.approx(busy)
        assert shares(seconds)["bubble"] == pytest.approx(1 - busy, abs=0.02)


@pytest.mark.parametrize("stages", [2, 4, 8])
@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_ring_is_busy_for_m_of_k(stages: int, groups: int) -> None:
    tokens = 200
    result = account(
        [timeline(r, s) for r, s in enumerate(simulate("ring", stages, groups, tokens))]
    )
    fill_and_drain = (stages - 1) / (tokens * max(stages, groups))
    for seconds in result.values():
        assert shares(seconds)["busy"] == pytest.approx(
            min(1, groups / stages), abs=1.01 * fill_and_drain
        )


def test_each_share_is_what_it_is_called() -> None:
    first: list[Span] = [
        ("load", -9, -1),  # before the window
        ("prefill", 0, 2),
        ("decode", 2, 3),
        ("transfer", 3, 4),
        ("weights", 4, 6),
        ("wait", 6, 8),  # idle: by what the other stage does
        ("decode", 10, 11),
        ("no_work", 11, 14),
        ("decode", 14, 15),
    ]
    second: list[Span] = [("decode", 6, 7), ("decode", 15, 16)]
    one, other = account_of(first, second)
    assert nonzero(one) == {
        "busy": 5,
        "transfer": 1,
        "weights": 2,
        "bubble": 1,
        "host_gap": 3,
        "no_work": 4,
    }
    assert nonzero(other) == {"busy": 2, "bubble": 5, "host_gap": 6, "no_work": 3}


def test_overlapping_spans_count_once() -> None:
    (only,) = account_of(
        [
            ("decode", 0, 4),
            ("decode", 2, 6),
            ("prefill", 3, 4),
            ("transfer", 5, 8),
            ("decode", 9, 10),
        ]
    )
    assert nonzero(only) == {"busy": 7, "transfer": 2, "host_gap": 1}


def test_one_rank_may_own_several_stages() -> None:
    spans = [
        (stage, start, start + 1)
        for token in range(3)
        for stage, start in ((0, 2 * token), (1, 2 * token + 1))
    ]
    rows = [(start, end, KINDS.index("decode"), stage, 0, 0) for stage, start, end in spans]
    result = account([Timeline(5, 0, "node", Attempt(0, 1), np.array(rows, SPAN), {})])
    assert {unit: shares(s)["busy"] for unit, s in result.items()} == {(5, 0): 0.5, (5, 1): 0.5}
    assert shares(result[5, 1])["bubble"] == 0.5


def test_a_shard_of_the_same_stage_is_no_other_stage() -> None:
    """With one stage there is nothing that could be a bubble; with two, each shard waits for the other stage."""
    shards = [timeline(0, [("decode", 0, 4)], stage=0), timeline(1, [("decode", 1, 3)], stage=0)]
    late = dict(zip(SHARES, account(shards)[1, 0].tolist(), strict=True))
    assert nonzero(late) == {"busy": 2, "host_gap": 1, "no_work": 1}
    second = timeline(2, [("decode", 4, 6), ("decode", 8, 9)], stage=1)
    shards = [
        timeline(0, [("decode", 0, 4), ("decode", 6, 8)], stage=0),
        timeline(1, [("decode", 0, 4), ("decode", 7, 8)], stage=0),
    ]
    found = account([*shards, second])[1, 0]
    assert nonzero(dict(zip(SHARES, found.tolist(), strict=True))) == {
        "busy": 5,
        "bubble": 2,
        "host_gap": 1,
        "no_work": 1,
    }


def test_a_timeline_is_read_as_often_however_many_stages_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Long pipelines have millions of spans."""
    read: list[int] = []
    select = Timeline.select

    def counted(self: Timeline, *kinds: str) -> Spans:
        read.append(self.rank)
        return select(self, *kinds)

    monkeypatch.setattr(Timeline, "select", counted)
    for stages in (2, 8):
        read.clear()
        account([timeline(r, s) for r, s in enumerate(simulate("ring", stages, stages, 5))])
        assert len(read) == 7 * stages


def test_a_replica_that_ends_early_has_no_work_until_its_devices_are_given_back() -> None:
    (only,) = account_of([("decode", 0, 4), ("decode", 5, 6)], until=10)
    assert nonzero(only) == {"busy": 5, "host_gap": 1, "no_work": 4}


def test_without_compute_there_is_nothing_to_account() -> None:
    assert account([timeline(0, [("load", 0, 1), ("transfer", 1, 2)])]) == {}
    assert account([]) == {}


def test_spans_without_length_do_no_harm() -> None:
    (only,) = account_of([("decode", 1, 1), ("decode", 0, 2), ("transfer", 2, 2), ("wait", 0, 0)])
    assert nonzero(only) == {"busy": 2}
    assert account([timeline(0, [("decode", 1, 1)])]) == {}


def brute(ranks: list[list[Span]]) -> list[dict[str, float]]:
    """The same shares by looking at every instant between two edges, one stage after the other."""
    computes = [span for spans in ranks for span in spans if span[0] in COMPUTE]
    begin, end = min(s for _, s, _ in computes), max(e for _, _, e in computes)
    edges = sorted(
        {min(max(t, begin), end) for spans in ranks for _, s, e in spans for t in (s, e)}
    )

    def doing(spans: list[Span], kinds: tuple[str, ...], at: float) -> bool:
        return any(kind in kinds and start <= at < stop for kind, start, stop in spans)

    results = []
    for spans in ranks:
        seconds = dict.fromkeys(SHARES, 0.0)
        work = [stop for kind, _, stop in spans if kind in (*COMPUTE, *LOADING, "transfer")]
        for at, following in pairwise(edges):
            if doing(spans, COMPUTE, at):
                name = "busy"
            elif doing(spans, ("transfer",), at):
                name = "transfer"
            elif doing(spans, LOADING, at):
                name = "weights"
            elif at >= max(work, default=0.0):
                name = "no_work"
            elif any(doing(others, COMPUTE, at) for others in ranks):
                name = "bubble"
            elif any(doing(others, ("no_work",), at) for others in ranks):
                name = "no_work"
            else:
                name = "host_gap"
            seconds[name] += following - at
        results.append(seconds)
    return results


@pytest.mark.parametrize("seed", range(60))
def test_random_spans_add_up_and_agree_with_a_slow_reading(seed: int) -> None:
    rng = random.Random(seed)
    ranks: list[list[Span]] = []
    for _ in range(rng.randint(1, 4)):
        starts = [rng.choice([rng.uniform(0, 50), float(rng.randint(0, 50))]) for _ in range(20)]
        spans = [(rng.choice(KINDS), s, s + rng.choice([0, 1, rng.uniform(0, 5)])) for s in starts]
        ranks.append([("decode", 20.0 + rng.random(), 22.0), *spans])
    result = account([timeline(rank, spans) for rank, spans in enumerate(ranks)])
    for rank, expected in enumerate(brute(ranks)):
        fractions = shares(result[rank, rank])
        assert sum(fractions.values()) == pytest.approx(1, abs=1e-12)
        assert min(fractions.values()) >= 0
        assert result[rank, rank] == pytest.approx([expected[name] for name in SHARES], abs=1e-9)


def test_a_sampled_timeline_gives_the_shares_of_the_whole(tmp_path: Path) -> None:
    """Two hours of a two-stage ring with one group, of which the files hold a few percent."""
    paths = [tmp_path / "0", tmp_path / "1"]
    for rank, path in enumerate(paths):
        clock = {"monotonic": 0.0, "epoch": 1_700_000_000.0 + rank, "offset": -rank}
        header = {"rank": rank, "replica": 0, "host": "n", "attempt": "w0000-a0001", "clock": clock}
        recorder = Recorder(path, header, limit=1000, tail=50)
        for step in range(36_000):
            start = 0.2 * step + (0.06 if rank else 0)
            recorder.add("decode", start, start + (0.12 if rank else 0.06), stage=rank)
            if step % 100 == 0:
                recorder.flush()
        recorder.close()
    timelines = read_timelines(paths)
    assert all(len(each.spans) < 36_000 / 4 for each in timelines)
    result = account(timelines)
    assert shares(result[0, 0])["busy"] == pytest.approx(0.3, abs=0.003)
    assert shares(result[1, 1])["busy"] == pytest.approx(0.6, abs=0.003)
    assert shares(result[0, 0])["bubble"] == pytest.approx(0.6, abs=0.003)
    assert shares(result[0, 0])["host_gap"] == pytest.approx(0.1, abs=0.003)
    for seconds in result.values():
        assert seconds.sum() == pytest.approx(36_000 * 0.2 - 0.02)
