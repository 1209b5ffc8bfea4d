"""Schedules over real ranks whose stages sleep: what is measured is what arithmetic says, and tokens are right."""

from __future__ import annotations

import pytest
from synthetic import Case, mean, run_cases

from launcher.measure.bubble import SHARES

Measured = tuple[Case, list[dict[str, float]]]  # what ran, and the shares of its stages

pytestmark = pytest.mark.slow

UNIT_S = 0.03
TOLERANCE = 0.02
# What else the machine does delays single steps; where that shows, longer steps make it weigh less.
SLOWER = (1, 4, 10)

CASES = [
    Case((UNIT_S,) * stages, groups, schedule, steps)
    for stages in (2, 4)
    for groups, schedule, steps in (
        (1, "naive", 8),
        *((groups, "gpipe", 8) for groups in (2, 3, 4)),
        *((groups, "ring", 16) for groups in (2, 3, 4)),
    )
]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[Case, Measured]:
    """By case, as it was meant: how it went at the first speed at which nothing disturbed it."""
    found: dict[Case, Measured] = {}
    left = CASES
    for factor in SLOWER:
        cases = [case.slower(factor) for case in left]
        results = run_cases(cases, tmp_path_factory.mktemp("schedules"))
        found |= dict(zip(left, zip(cases, results, strict=True), strict=True))
        left = [case for case in left if not near(*found[case])]
        if not left:
            break
    return found


def near(case: Case, stages: list[dict[str, float]]) -> bool:
    return abs(mean(stages) - case.expected) < TOLERANCE


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case.schedule}-{case.groups}-over-{len(case.seconds)}"
)
def test_utilisation_is_what_the_schedule_allows(
    case: Case, measured: dict[Case, Measured]
) -> None:
    case, stages = measured[case]
    assert mean(stages) == pytest.approx(case.expected, abs=TOLERANCE)
    for stage in stages:
        assert sum(stage.values()) == pytest.approx(1.0)
        assert set(stage) == set(SHARES)
    # Sleeping stages send next to nothing: what is not work is bubble, or the ends of the run.
    idle = mean(stages, "bubble") + mean(stages, "no_work")
    assert idle == pytest.approx(1 - mean(stages), abs=3 * TOLERANCE)
