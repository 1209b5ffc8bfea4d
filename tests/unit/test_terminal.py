"""Tables at any width, with any names, in any terminal or none; bars and units."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
from rich.console import Console, RenderableType
from shown import GIB, lines, pipelined, plan, stage, state, summary, text

from launcher.report import bars, units
from launcher.report.table import plan_table, runs_table, status_table, summary_table

ALL = [
    plan_table(pipelined()),
    plan_table(plan()),
    summary_table(summary()),
    runs_table([state()]),
    status_table(state()),
]


@pytest.mark.parametrize("width", [80, 100, 140])
@pytest.mark.parametrize("shown", ALL)
def test_nothing_is_cut_off_at_any_width(shown: RenderableType, width: int) -> None:
    assert "…" not in text(shown, width)
    assert "\x1b" not in text(shown, width)


def test_at_80_columns_a_row_is_one_line() -> None:
    rows = [line for line in lines(summary_table(summary()), 80) if "cuda:" in line]
    assert len(rows) == 2 and all(row.endswith("3.00 GiB") for row in rows)
    rows = [line for line in lines(plan_table(plan(replicas=2)), 80) if "cuda" in line]
    assert len([row for row in rows if row.endswith("of 70.0 GiB")]) == 4


def test_long_names_wrap_instead_of_pushing_figures_out() -> None:
    host = "gpu-a100-rack-7-node-0017"
    shown = lines(summary_table(summary(stages=[stage(host=f"{host}.cluster.example.org")])), 80)
    (first,) = [number for number, line in enumerate(shown) if line.startswith("0 ")]
    assert shown[first].endswith("3.00 GiB")
    wrapped = [shown[first].split()[1], *(line.strip() for line in shown[first + 1 :])]
    assert "".join(wrapped) == f"{host} cuda:0"


def test_names_and_messages_neither_colour_nor_steer_the_terminal() -> None:
    evil = "[red]x\x1b[2J\x07"
    failure = {"what": evil, "where": evil, "cause": None, "fix": evil}
    for shown in (
        status_table(state(run=evil, path=evil, jobs={evil: "running"}, failure=failure)),
        runs_table([state(run=evil, jobs={evil: "running"})]),
        summary_table(summary(name=evil, stages=[stage(host=evil)])),
        plan_table(plan(reasons=[evil])),
    ):
        written = text(shown, 140)
        assert "[red]x" in written
        assert "\x1b" not in written and "\x07" not in written


def test_without_unicode_there_are_only_ascii_characters() -> None:
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding="ascii"), width=100)
    for shown in ALL:
        console.print(shown)
    console.file.flush()
    assert b"#" in raw.getvalue()


def test_in_a_pipe_there_are_no_escape_codes() -> None:
    code = (
        "from rich.console import Console\nfrom launcher.report.bars import Legend, meter\n"
        "Console().print(meter(0.5)); Console().print(Legend())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert b"busy" in out and b"\x1b" not in out


def test_tables_need_no_torch_and_no_numpy() -> None:
    code = (
        "import sys, launcher.report.table\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("shares", "bar"),
    [
        ((1, 0, 0, 0, 0, 0), "██████████"),
        ((0.5, 0.2, 0.1, 0.1, 0.1, 0), "█████░░▓▒·"),
        ((0.34, 0.33, 0, 0, 0, 0.33), "████░░░   "),
        ((None, 0, 0, 0, 0, 0), ""),
    ],
)
def test_stacked_bars_are_in_proportion(shares: tuple[float | None, ...], bar: str) -> None:
    console = Console(file=io.StringIO(), width=10)
    console.print(bars.stacked(dict(zip(bars.SHARES, shares, strict=True))), end="")
    assert console.file.getvalue().rstrip("\n") == bar  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (units.duration(0.414), "0.41s"),
        (units.duration(59.96), "1m00s"),
        (units.duration(3599.6), "1h00m"),
        (units.duration(3725), "1h02m"),
        (units.duration(183_600), "2d03h"),
        (units.size(0), "0 B"),
        (units.size(327_680), "320 KiB"),
        (units.size(32_768_000), "31.2 MiB"),
        (units.size(280 * 10**9), "261 GiB"),
        (units.size_of(1.5 * GIB, 70 * GIB), "1.50 of 70.0 GiB"),
        (units.percent(0.0254), "2.5 %"),
        (units.percent(0.254), "25 %"),
        (units.percent(0.0001), "<0.1 %"),
        (units.percent(1.0), "100 %"),
        (units.short(68_976_648_192), "69.0 B"),
        (units.amount(12_400.4), "12,400"),
        (units.amount(0.414), "0.41"),
        (units.duration(None), "-"),
    ],
)
def test_units(shown: str, expected: str) -> None:
    assert shown == expected
