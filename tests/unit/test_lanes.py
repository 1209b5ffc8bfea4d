"""Lanes and charts: the timeline shows what the accounting counts, packed to a size that a browser opens."""

from __future__ import annotations

import base64
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_runs import Pipeline

from launcher.measure import spans
from launcher.measure.spans import Recorder
from launcher.measure.timeline import read_timelines
from launcher.report import charts, html
from launcher.report.lanes import IDLE, ITEM, SHOWN, Axis, Lane, build_lanes, coverage
from launcher.report.packed import pack
from launcher.run import read_json

DTYPES = {"start": "<u4", "ticks": "<u4", "step": "<i4", "group": "<i2", "kind": "<u1"}


def unpack(row: dict[str, Any], name: str) -> np.ndarray[Any, Any]:
    return np.frombuffer(base64.b64decode(row[name]), DTYPES.get(name, "<u1"))


def seconds(lane: Lane, kind: str) -> float:
    items = lane.items[lane.items["kind"] == SHOWN.index(kind)]
    return float((items["end"] - items["start"]).sum())


def test_idle_time_on_the_lanes_is_that_of_the_summary(tmp_path: Path) -> None:
    run = Pipeline(steps=30, replicas=2).write(tmp_path)
    stages = read_json(run.summary)["stages"]
    timelines = read_timelines(run.timelines())
    lanes = build_lanes(timelines, Axis([(0.0, 2e9)]))
    assert [(lane.replica, lane.stage) for lane in lanes] == [
        (s["replica"], s["stage"]) for s in stages
    ]
    window = read_json(run.summary)["generate_s"]
    for lane, stage in zip(lanes, stages, strict=True):
        for kind in IDLE:
            assert seconds(lane, kind) == pytest.approx(stage[kind] * window, abs=1e-4)
        assert seconds(lane, "prefill") == pytest.approx(stage["prefill_s"], abs=1e-4)


def test_the_axis_leaves_out_the_time_between_attempts() -> None:
    axis = Axis([(100.0, 110.0), (105.0, 120.0), (1000.0, 1030.0)])
    assert axis.length == 50
    assert axis.cuts == [20]
    times = np.array([100.0, 119.0, 500.0, 1001.0])
    assert axis.at(times).tolist() == [0, 19, 20, 21]


def test_every_item_of_a_short_run_is_in_the_page() -> None:
    lane = random_lane(1000)
    document = pack([lane], 100.0)
    (row,) = document["lanes"]
    assert document["bins"] == 0
    assert row["count"] == 1000
    starts = unpack(row, "start") * document["tick_s"]
    assert np.allclose(starts, lane.items["start"], atol=1e-6)
    ends = starts + unpack(row, "ticks") * document["tick_s"]
    assert np.allclose(ends, lane.items["end"], atol=2e-6)
    for name in ("step", "group", "kind"):
        assert (unpack(row, name) == lane.items[name]).all()


def test_a_million_spans_fit_into_a_page_that_says_where_they_went() -> None:
    lanes = [random_lane(20_000, rank) for rank in range(64)]
    document = pack(lanes, 100.0)
    assert len(json.dumps(document)) < 2_800_000
    assert 50_000 < sum(row["count"] for row in document["lanes"]) < 101_000
    assert document["items"] == 64 * 20_000
    bins = unpack(document["lanes"][5], "bins").reshape(document["bins"], len(SHOWN)) / 255
    decode = SHOWN.index("decode")
    assert bins[:, decode].mean() * 100 == pytest.approx(seconds(lanes[5], "decode"), rel=0.02)


def test_coverage_counts_the_part_of_an_item_that_is_inside() -> None:
    items = np.array([(1.0, 3.0, 1, 0, 0), (3.0, 3.5, 1, 0, 0), (0.0, 9.0, 2, 0, 0)], ITEM)
    assert coverage(items, 1, np.array([0.0, 2.0, 4.0, 6.0])).tolist() == [1.0, 1.5, 0.0]


def test_tokens_over_time_add_up(tmp_path: Path) -> None:
    run = Pipeline(steps=30, replicas=2).write(tmp_path)
    timelines = read_timelines(run.timelines())
    chart = charts.tokens_over_time(timelines, Axis([(0.0, 2e9)]), (1_700_000_000.0, 1_700_000_010))
    assert chart
    total = sum(rate * (end - begin) for begin, end, rate in chart["columns"])
    assert total == pytest.approx(2 * 30 * 3 * 16)
    assert chart["top"] >= max(rate for *_, rate in chart["columns"])


def test_token_counts_are_sampled_ever_more_rarely_and_end_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = itertools.count()
    monkeypatch.setattr(spans.time, "perf_counter", lambda: next(now) * 0.01)
    header = {"rank": 0, "replica": 0, "host": "h", "attempt": "w0000-a0001"}
    recorder = Recorder(tmp_path / "t.jsonl", header)
    for count in range(1, 40_001):
        recorder.count_tokens(count)
    recorder.close()
    (timeline,) = read_timelines([tmp_path / "t.jsonl"])
    assert timeline.tokens[-1][1] == 40_000
    assert 800 < len(timeline.tokens) < 2_000
    gaps = np.diff([at for at, _ in timeline.tokens[:-1]])
    assert gaps[-1] > 5 * gaps[0]


@pytest.mark.parametrize("value", [0.0003, 1, 7, 1500, 1501, 99_999])
def test_the_top_of_an_axis_is_a_round_number_not_far_above(value: float) -> None:
    assert value <= charts.nice_above(value) <= 2 * value


def random_lane(count: int, rank: int = 0) -> Lane:
    random = np.random.default_rng(rank)
    edges = np.sort(random.uniform(0, 100, 2 * count)).reshape(count, 2)
    items = np.empty(count, ITEM)
    items["start"], items["end"] = edges[:, 0], edges[:, 1]
    items["kind"] = random.integers(0, len(SHOWN), count)
    items["group"], items["step"] = random.integers(-1, 8, count), np.arange(count)
    return Lane(0, 0, rank, rank, "h", items)


# Machado, Oliveira and Fernandes (2009), severity 1.0, on linear RGB.
VISION = {
    "full": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "no red": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "no green": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "no blue": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
}
TO_XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("theme", [0, 1, 2], ids=["light", "dark", "paper"])
def test_colours_can_be_told_apart(theme: int, vision: str) -> None:
    css = (html.HERE / "report.css").read_text()
    block = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[theme]
    colours = dict(re.findall(r"--(\w+): (#\w{6})", block))
    kinds = ("prefill", "decode", "transfer", "weights", "bubble", "host_gap", "no_work")
    labs = {kind: lab(colours[kind], vision) for kind in kinds}
    for one, other in itertools.combinations(kinds, 2):
        assert np.linalg.norm(labs[one] - labs[other]) > 20, (one, other)  # 2.3 is just noticeable


def lab(colour: str, vision: str) -> np.ndarray[Any, Any]:
    """CIE L*a*b* of a colour as it is seen."""
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(VISION[vision]) @ linear, 0, 1)
    x, y, z = np.cbrt(np.array(TO_XYZ) @ seen / np.array([0.9505, 1.0, 1.089]))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])
