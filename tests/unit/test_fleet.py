"""Simulated fleets against what can be said of them on paper."""

from __future__ import annotations

from dataclasses import replace

import pytest

from launcher.bench.fleet import Fleet, simulate
from launcher.bench.pressure import CAPACITY, loads

PLAIN = Fleet(worlds=10, nodes=2, replicas=2, rows=100_000, rows_per_s=5.0, slots=64)


def test_without_failures_it_takes_rows_over_rate() -> None:
    course = simulate(replace(PLAIN, worlds=1, replicas=1, rows=10_000, load_s=60.0))
    assert course.seconds == pytest.approx(60 + 10_000 / 5)
    assert course.busy == pytest.approx(2000 / 2060)
    many = simulate(PLAIN)
    chunk_s = PLAIN.chunk_rows / PLAIN.rows_per_s
    assert 1000 - 1e-6 <= many.seconds <= 1000 + chunk_s  # 100,000 rows / (20 replicas x 5 rows/s)
    assert (many.failures, many.lost_rows, many.left_rows) == (0, 0, 0)
    assert many.claims == -(-PLAIN.rows // PLAIN.chunk_rows)


def test_stragglers_do_less_and_the_others_more() -> None:
    course = simulate(replace(PLAIN, stragglers=0.5, slowdown=2.0))
    slowest_chunk_s = 2 * PLAIN.chunk_rows / PLAIN.rows_per_s
    ideal = 100_000 / (10 * 5.0 + 10 * 2.5)
    assert ideal <= course.seconds <= ideal + slowest_chunk_s


def test_failures_come_as_often_as_nodes_fail_and_cost_what_was_in_flight() -> None:
    fleet = replace(PLAIN, rows=1_000_000, node_mtbf_s=20_000.0, detect_s=30.0, queue_s=30.0)
    courses = [simulate(replace(fleet, seed=seed, max_restarts=1000)) for seed in range(5)]
    failures = sum(course.failures for course in courses)
    expected = sum(course.seconds for course in courses) * 10 * 2 / 20_000
    assert abs(failures - expected) < 5 * expected**0.5
    for course in courses:
        assert course.left_rows == 0
        assert course.lost_rows <= course.failures * fleet.replicas * fleet.slots / 2
        assert course.lost_rows >= 0.9 * course.failures * fleet.slots / 2
        assert course.seconds >= 1_000_000 / 100  # what no failure could make shorter
        # Every row counts once, whoever computed it.
        assert course.busy * 20 * course.seconds * 5.0 == pytest.approx(1_000_000, rel=1e-3)


def test_rows_of_a_world_that_does_not_come_back_are_left_until_resume() -> None:
    alone = Fleet(1, 1, 1, 100_000, 5.0, 64, node_mtbf_s=1000.0, max_restarts=0)
    course = simulate(alone)
    assert course.failures == 1
    assert 0 < course.left_rows < 100_000
    assert simulate(replace(alone, max_restarts=10_000)).left_rows == 0


def test_the_same_seed_plays_the_same() -> None:
    fleet = replace(PLAIN, node_mtbf_s=30_000.0, stragglers=0.1, slowdown=1.5)
    assert simulate(fleet) == simulate(fleet)
    assert simulate(fleet) != simulate(replace(fleet, seed=1))


@pytest.mark.parametrize("wrong", [{"worlds": 0}, {"rows_per_s": 0.0}, {"slowdown": 0.5}])
def test_what_is_no_fleet(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="a fleet has"):
        replace(PLAIN, **wrong)  # type: ignore[arg-type]


def test_load_on_the_filesystem() -> None:
    course = simulate(PLAIN)
    found = {load.what: load.per_s for load in loads(PLAIN, course, ranks=8, weights_bytes=10**9)}
    assert set(found) == set(CAPACITY)
    assert found["at start: bytes read"] == 20 * 10**9 / 60
    assert found["syncs"] == 20 * 5.0
    # Of each rank two status files per second, of each agent one, each a file that is renamed.
    assert found["creates and renames"] >= 2 * (80 * 2 + 20)
    double = replace(PLAIN, worlds=20)
    more = {load.what: load.per_s for load in loads(double, simulate(double), 8, 10**9)}
    assert more["at start: opens"] == 4 * found["at start: opens"]
