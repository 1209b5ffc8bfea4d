"""Schedules over real ranks whose stages take a known time: what is measured is what arithmetic says, and tokens are right."""

from __future__ import annotations

import pytest
from synthetic import Case, mean, run_cases

from launcher.measure.bubble import SHARES

CASES = [
    Case((0.03,) * stages, groups, schedule, steps)
    for stages in (2, 4)
    for groups, schedule, steps in (
        (1, "naive", 8),
        *((groups, "gpipe", 8) for groups in (2, 3, 4)),
        *((groups, "ring", 16) for groups in (2, 3, 4)),
    )
]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[Case, list[dict[str, float]]]:
    """The shares of each case's stages."""
    results = run_cases(CASES, tmp_path_factory.mktemp("schedules"), asleep=False)
    return dict(zip(CASES, results, strict=True))


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case.schedule}-{case.groups}-over-{len(case.seconds)}"
)
def test_utilisation_is_what_the_schedule_allows(
    case: Case, measured: dict[Case, list[dict[str, float]]]
) -> None:
    stages = measured[case]
    assert mean(stages) == pytest.approx(case.expected, abs=1e-4)
    for stage in stages:
        assert sum(stage.values()) == pytest.approx(1.0)
        assert set(stage) == set(SHARES)
    # Nothing but computing takes time: what is not work is bubble, or the ends of the run.
    idle = mean(stages, "bubble") + mean(stages, "no_work")
    assert idle == pytest.approx(1 - mean(stages), abs=1e-4)
