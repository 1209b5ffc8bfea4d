"""`launcher bench machine`: what is measured, by real ranks, and where it is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from gate import hook

from launcher.bench import machine, products
from launcher.bench.layers import non_negative_fit
from launcher.bench.storage import mapped_rate, read_rates, scratch_file
from launcher.errors import RunFailed, UsageError
from launcher.plan import measured
from launcher.plan.measured import Costs, Line, MachineProfile, Speed

COSTS = Costs(
    matmul={1: 1e9, 64: 3e10},
    pass_s=1e-4,
    layer_s=1e-4,
    row_s=1e-6,
    width_s=1e-9,
    decode_s=1e-9,
    prefill_s=1e-9,
)


def profile(**changes: object) -> MachineProfile:
    speeds = [
        Speed(
            device="cpu",
            ranks=n,
            threads=8 // n,
            memory=1e10 / n,
            mapped=9e10 / n,
            costs={"float32": COSTS},
        )
        for n in (1, 2, 8)
    ]
    line = Line(latency_s=1e-4, bytes_per_s=1e9)
    fields = {
        "kind": measured.kind_here(),
        "host": "here",
        "measured": 1.0,
        "software": "torch",
        "speeds": speeds,
        "step_s": 1e-4,
        "start_s": 9.0,
        "loading_s": 2.0,
        "backend": "gloo",
        "link": line,
        "all_reduce": line,
        "gather": line,
        "disk": 2e9,
        "cached": 5e9,
    }
    return MachineProfile.model_validate(fields | changes)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_profile_is_kept_for_machines_of_one_kind(cache: Path) -> None:
    assert measured.load_profile() is None
    path = measured.save_profile(profile())
    assert path.is_relative_to(cache)
    assert measured.load_profile() == profile()
    assert measured.load_profile("another CPU, 4 CPUs") is None


def test_profile_of_another_version_is_as_none_and_a_torn_one_is_told() -> None:
    path = measured.save_profile(profile(version=0))
    assert measured.load_profile() is None
    path.write_text("{")
    with pytest.raises(UsageError, match="can't be read"):
        measured.load_profile()
    path.write_text(json.dumps({"version": measured.VERSION}))
    with pytest.raises(UsageError, match="can't be read"):
        measured.load_profile()


@pytest.mark.parametrize(("ranks", "nearest"), [(1, 1), (2, 2), (3, 2), (6, 8), (64, 8)])
def test_speed_is_that_of_as_many_ranks(ranks: int, nearest: int) -> None:
    found = profile().speed("cpu", ranks)
    assert found is not None
    assert found.ranks == nearest
    assert profile().speed("A100", 1) is None


def test_fit_finds_the_factors_and_none_below_zero() -> None:
    features = [[1.0, float(x), float(x * x % 7)] for x in range(1, 9)]
    assert non_negative_fit(
        features, [2 + 3 * a + 0.5 * b for _, a, b in features]
    ) == pytest.approx([2, 3, 0.5])
    first, second, third = non_negative_fit(features, [9 + 3 * a - b for _, a, b in features])
    assert third == 0
    assert first > 0
    assert second > 0


def test_storage_is_read_and_nothing_stays(tmp_path: Path) -> None:
    with scratch_file(tmp_path, size=16 << 20) as file:
        assert min(*read_rates(file), mapped_rate(file)) > 0
    assert not list(tmp_path.glob(".launcher*"))


def test_rounds_are_put_together_by_their_means() -> None:
    one = {"device": "cpu", "ranks": 2, "mapped": 1.0, "costs": {"float32": {"matmul": {"1": 2.0}}}}
    other = one | {"costs": {"float32": {"matmul": {"1": 4}}}, "mapped": None}
    both = {"device": "cpu", "ranks": 2, "mapped": None, "costs": {"float32": {"matmul": {"1": 3}}}}
    assert machine.mean([one, other]) == machine.mean([other, one]) == both


def test_products_are_counted_for_every_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(products.WORKING_SET, "cpu", 32 << 20)
    rates = products.matmul_rates(torch.device("cpu"), torch.float32)
    assert list(rates) == list(products.ROWS)
    assert all(1e6 < rate < 1e15 for rate in rates.values())


def test_rank_that_fails_is_told_and_none_is_left(tmp_path: Path) -> None:
    kind = "cuda" if not torch.cuda.is_available() else "tpu"
    with pytest.raises(RunFailed, match=r"rank [01] of 2 failed"):
        machine._world(kind, 2, 1, tmp_path, ["float32"])


# In the ranks: everything is timed once, matrices need not be larger than caches, and models have two layers.
QUICK = """
import sys
if "launcher.bench.rank" in sys.orig_argv:
    from launcher.bench import clock, layers, products
    clock.FEWEST = clock.MOST = 1
    products.WORKING_SET["cpu"] = 32 << 20
    for probe in layers.PROBES:
        probe["num_hidden_layers"] = 2
"""


def test_two_ranks_measure_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", hook(tmp_path / "hook", QUICK)["PYTHONPATH"])
    with scratch_file(tmp_path, size=8 << 20) as file:
        said = machine._world("cpu", 2, 1, file, ["bfloat16"])
    speed = Speed.model_validate(said["speed"])
    assert speed.ranks == 2
    assert speed.mapped
    assert speed.mapped > 1e8
    assert set(speed.costs) == {"bfloat16"}
    # Which of its factors a noisy machine leaves at 0 is open.
    factors = [
        costs.model_dump(exclude={"matmul", "unpacked"}).values() for costs in speed.costs.values()
    ]
    assert all(min(each) >= 0 and max(each) > 0 for each in factors)
    assert Line.model_validate(said["link"]).bytes_per_s > 1e6
    assert Line.model_validate(said["all_reduce"]).latency_s > 0
