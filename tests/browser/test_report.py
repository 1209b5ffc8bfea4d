"""The report in a real browser: it is drawn, it can be moved about in, and it says what summary.json says."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chromium
import pytest
from chromium import Page
from report_runs import Pipeline

from launcher.measure.bubble import SHARES
from launcher.report import packed
from launcher.report.html import write_report
from launcher.run import Run

STAGES = 4
# Done when the page has not been scrolled for half a second: a wheel scrolls on for a moment, and for a quarter of a second
# after the last of it the timeline leaves the wheel to the page.
STILL = """new Promise(done => { let at = scrollY, since = performance.now(); const look = () => {
    if (scrollY !== at) { at = scrollY; since = performance.now(); }
    performance.now() - since < 500 ? requestAnimationFrame(look) : done(); }; look(); })"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if chromium.find() is None:
        reason = "no chromium: make browser installs it"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with Page(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Pipeline(steps=60).write(tmp_path_factory.mktemp("runs"))
    write_report(run)
    return run


@pytest.fixture
def shown(page: Page, run: Run) -> Page:
    return show(page, run)


def show(page: Page, run: Run) -> Page:
    page.events.clear()
    page.resize(1280, 900)
    page.open(run.report)
    page.run("document.querySelector('canvas').scrollIntoView({block: 'center'})")
    page.run(STILL)
    return page


def view(page: Page) -> dict[str, float]:
    """Begin and end of what is in view, in ticks, and the number of spans that were drawn."""
    page.settle()
    data = page.run("({...document.querySelector('canvas').dataset})")
    return {name: float(value) for name, value in data.items()}


def canvas(page: Page) -> tuple[float, float, float, float]:
    box = page.run("document.querySelector('canvas').getBoundingClientRect().toJSON()")
    return box["x"], box["y"], box["width"], box["height"]


def colours(page: Page) -> set[tuple[int, int, int]]:
    """Those of the canvas's pixels."""
    script = """(() => { const c = document.querySelector('canvas');
        const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
        const found = new Set();
        for (let i = 0; i < d.length; i += 4) if (d[i + 3] === 255) found.add([d[i], d[i+1], d[i+2]].join());
        return [...found]; })()"""
    return {tuple(int(n) for n in text.split(",")) for text in page.run(script)}  # type: ignore[misc]


def colour(page: Page, name: str) -> tuple[int, int, int]:
    style = f"getComputedStyle(document.documentElement).getPropertyValue('--{name}').trim()"
    value = page.run(style)
    return int(value[1:3], 16), int(value[3:5], 16), int(value[5:7], 16)


def test_nothing_is_complained_about_and_nothing_asked_for(shown: Page, run: Run) -> None:
    assert shown.complaints() == []
    assert shown.requests() == [run.report.as_uri()]


def test_the_timeline_is_drawn(shown: Page) -> None:
    drawn = view(shown)
    assert drawn["drawn"] > 60 * 3 * STAGES * 2  # a computation and a transfer of each step
    there = colours(shown)
    for kind in ("prefill", "decode", "bubble"):
        assert colour(shown, kind) in there, kind
    shown.run("document.getElementById('timeline').focus()")
    for _ in range(4):
        shown.key("+")
    assert colour(shown, "transfer") in colours(shown)  # too short to be seen from afar


def test_tables_say_what_the_summary_says(shown: Page, run: Run) -> None:
    summary = json.loads(run.summary.read_text())
    cells = shown.run(
        """[...document.querySelectorAll('tr[data-stage]')].map(row =>
        Object.fromEntries([...row.querySelectorAll('[data-key]')].map(cell =>
            [cell.dataset.key, [JSON.parse(cell.dataset.value), cell.textContent]])))"""
    )
    assert len(cells) == STAGES
    for row, stage in zip(cells, summary["stages"], strict=True):
        assert {name: value for name, (value, _) in row.items()} == {s: stage[s] for s in SHARES}
        assert row["busy"][1] == f"{stage['busy']:.0%}".replace("%", " %")
    tile = shown.run("document.querySelector('.tiles [data-key=tokens_per_s]').textContent")
    assert tile == f"{summary['tokens_per_s']:,.0f}"


def test_shares_fill_their_bar(shown: Page) -> None:
    parts = shown.run(
        """[...document.querySelectorAll('.stack')].map(stack =>
        [...stack.children].reduce((sum, part) => sum + part.getBoundingClientRect().width, 0) /
        stack.getBoundingClientRect().width)"""
    )
    assert parts == pytest.approx([1.0] * STAGES, abs=0.01)


def test_wheel_drag_and_keys_move_the_view(shown: Page) -> None:
    x, y, width, _ = canvas(shown)
    before = view(shown)
    shown.mouse("Wheel", x + width / 2, y + 50, deltaX=0, deltaY=-120)
    near = view(shown)
    assert near["end"] - near["begin"] < 0.8 * (before["end"] - before["begin"])
    assert before["begin"] < near["begin"]
    shown.mouse("Pressed", x + width / 2, y + 50, button="left", buttons=1, clickCount=1)
    shown.mouse("Moved", x + width / 2 + 100, y + 50, button="left", buttons=1)
    shown.mouse("Released", x + width / 2 + 100, y + 50, button="left", clickCount=1)
    moved = view(shown)
    assert moved["begin"] < near["begin"]
    assert moved["end"] - moved["begin"] == pytest.approx(near["end"] - near["begin"])
    for key, check in (
        ("+", lambda old, new: new["begin"] > old["begin"] and new["end"] < old["end"]),
        ("ArrowRight", lambda old, new: new["begin"] > old["begin"] and new["end"] > old["end"]),
        ("-", lambda old, new: new["end"] - new["begin"] > old["end"] - old["begin"]),
        ("0", lambda old, new: new["begin"] == 0 and new["end"] > old["end"]),
    ):
        old = view(shown)
        shown.key(key)
        assert check(old, view(shown)), key
    shown.run("document.querySelector('[data-view=window]').click()")
    assert view(shown) == pytest.approx(before)


def test_dragging_along_the_axis_zooms_into_that_part(shown: Page) -> None:
    x, y, width, _ = canvas(shown)
    before = view(shown)
    shown.mouse("Pressed", x + width * 0.5, y + 8, button="left", buttons=1, clickCount=1)
    shown.mouse("Moved", x + width * 0.6, y + 8, button="left", buttons=1)
    shown.mouse("Released", x + width * 0.6, y + 8, button="left", clickCount=1)
    after = view(shown)
    assert after["end"] - after["begin"] < 0.15 * (before["end"] - before["begin"])


def test_the_wheel_scrolls_the_page_where_there_is_nothing_to_zoom(shown: Page) -> None:
    shown.run("document.querySelector('[data-view=all]').click()")
    x, y, width, _ = canvas(shown)
    before, at = view(shown), shown.run("scrollY")
    shown.mouse("Wheel", x + width / 2, y + 50, deltaX=0, deltaY=200)
    shown.run(
        f"new Promise(done => {{ const look = () => scrollY > {at} ? done()"
        " : requestAnimationFrame(look); look(); })"
    )
    assert view(shown) == before


def test_the_pointer_is_told_what_is_under_it(shown: Page) -> None:
    x, y, width, _ = canvas(shown)
    for _ in range(12):
        shown.mouse("Wheel", x + width / 2, y + 40, deltaX=0, deltaY=-120)
    assert canvas(shown)[:2] == (x, y)  # it was zoomed, not scrolled
    texts = []
    for part in range(30, 95, 3):
        shown.mouse("Moved", x + width * part / 100, y + 36)
        if not shown.run("document.getElementById('tip').hidden"):
            texts.append(shown.run("document.getElementById('tip').textContent"))
    assert any(text.startswith("decode, group ") and " ms\n" in text for text in texts), texts
    assert any(text.startswith("bubble: ") for text in texts), texts
    assert all("rank 0 on node0, layers 0-19" in text for text in texts)


@pytest.mark.parametrize("width", [360, 768, 1280, 1920])
def test_no_page_is_wider_than_its_window(shown: Page, width: int) -> None:
    shown.resize(width, 800)
    shown.settle()
    assert shown.run("document.documentElement.scrollWidth") <= width
    assert canvas(shown)[2] > 0.8 * min(width, 1160) - 60


def test_no_table_is_cut_off_on_a_desktop(page: Page, tmp_path: Path) -> None:
    run = Pipeline(steps=4, replicas=2).write(tmp_path)
    write_report(run)
    show(page, run)
    tables = "[...document.querySelectorAll('.scroll')]"
    assert page.run(f"{tables}.length") == 6
    assert page.run(f"{tables}.every(box => box.scrollWidth <= box.clientWidth)")


def test_it_has_a_dark_theme_and_prints_in_the_light_one(shown: Page) -> None:
    light = colour(shown, "paper")
    dark_scheme = [{"name": "prefers-color-scheme", "value": "dark"}]
    shown.call("Emulation.setEmulatedMedia", features=dark_scheme)
    shown.settle()
    assert sum(colour(shown, "paper")) < 150
    assert colour(shown, "decode") in colours(shown)
    shown.call("Emulation.setEmulatedMedia", media="print", features=dark_scheme)
    assert colour(shown, "paper") == light
    assert shown.call("Page.printToPDF")["data"].startswith(base64.b64encode(b"%PDF")[:4].decode())
    shown.call("Emulation.setEmulatedMedia", media="", features=[])


def test_a_long_run_is_drawn_from_its_parts(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed.pack, "__defaults__", (600,))
    run = Pipeline(steps=300).write(tmp_path)
    write_report(run)
    show(page, run)
    assert page.complaints() == []
    assert "all are here where the axis is thick" in page.run("document.body.textContent")
    assert view(page)["drawn"] < 1000
    assert colour(page, "decode") in colours(page)
    x, y, width, _ = canvas(page)
    page.mouse("Moved", x + width * 0.3, y + 36)  # before the middle: only shares are known
    text = page.run("document.getElementById('tip').textContent")
    assert "decode " in text
    assert "bubble " in text
    assert "spans" not in text


def test_hostile_names_are_shown_and_not_run(page: Page, tmp_path: Path) -> None:
    evil = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>"
    run = Pipeline(steps=8, host=evil).write(tmp_path)
    failed: dict[str, Any] = {"index": 0, "id": evil, "code": evil, "message": evil}
    run.errors.write_text(json.dumps(failed))
    write_report(run)
    show(page, run)
    assert page.run("document.title") == f"{run.name}: report"
    assert page.run("document.images.length") == 0
    assert evil in page.run("document.body.textContent")
    assert page.complaints() == []
    assert page.requests() == [run.report.as_uri()]
