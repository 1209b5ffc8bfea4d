"""Tables: what a person reads, at any width, in colours or piped, whatever names and messages hold."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from typing import Any

import pytest
from rich.console import Console, RenderableType

from launcher.measure.bubble import SHARES
from launcher.plan.plan import Batch, DevicePlan, Placement, Plan, Predicted
from launcher.report import bars, units
from launcher.report.choice import split
from launcher.report.table import plan_table, runs_table, status_table, summary_table

GIB = 2**30


def text(shown: RenderableType, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(shown)
    written: str = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(len(line) <= width for line in written.splitlines())
    return written


def lines(shown: RenderableType, width: int = 100) -> list[str]:
    return [line.rstrip() for line in text(shown, width).splitlines()]


def device(replica: int, stage: int, weights: float, layers: tuple[int, int] | None) -> DevicePlan:
    return DevicePlan(
        replica=replica,
        stage=stage,
        rank=replica,
        device=f"cuda:{stage}",
        layers=layers,
        weights_bytes=int(weights * GIB),
        kv_bytes=GIB if layers else 0,
        activation_bytes=GIB // 2 if layers else 0,
        peak_bytes=int((weights + (1.5 if layers else 0)) * GIB),
        capacity_bytes=70 * GIB,
    )


def plan(replicas: int = 1, **changes: Any) -> Plan:
    """Llama-2-70B in bf16 over four GPUs of 70 GiB, two of which stay empty."""
    devices = [
        device(replica, stage, weights, layers)
        for replica in range(replicas)
        for stage, (weights, layers) in enumerate(
            [(67.3, (0, 41)), (61.2, (42, 79)), (0, None), (0, None)]
        )
    ]
    values: dict[str, Any] = {
        "fits": True,
        "reasons": ["GPUs cuda:2 and cuda:3 stay empty"],
        "strategy": "sequential",
        "device": "cuda",
        "dtype": "bfloat16",
        "parameters": 68_976_648_192,
        "weights_bytes": 137_953_296_384,
        "kv_bytes_per_token": 327_680,
        "world_size": replicas,
        "ranks_per_node": 1,
        "nodes": replicas,
        "gpus_per_node": 4,
        "devices": devices,
        "placements": [Placement(rank=r, replica=r, node=r) for r in range(replicas)],
        "batch": Batch(groups=1, slots=16, max_length=400, prefill_chunk=256),
    }
    return Plan(**{**values, **changes})


def stage(replica: int = 0, number: int = 0, **changes: Any) -> dict[str, Any]:
    shares = dict(zip(SHARES, (0.6, 0.1, 0.0, 0.25, 0.04, 0.01), strict=True))
    place = {"world": 0, "replica": replica, "stage": number, "rank": number, "host": "node1"}
    sizes = {"peak_memory_bytes": 3 * GIB, "weights_bytes": GIB, "bytes_read": GIB, "load_s": 2.0}
    return {**place, "device": f"cuda:{number}", "layers": [0, 7], **shares, **sizes, **changes}


def summary(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "name": "demo-0001",
        "rows": {"total": 1000, "ok": 998, "failed": 2},
        "tokens": {"prompt": 31_002, "completion": 17_208},
        "wall_s": 3725.0,
        "load_s": 47.25,
        "generate_s": 3600.0,
        "tokens_per_s": 478.4,
        "ttft_s": {"mean": 0.351, "p50": 0.312, "p95": 0.81},
        "attempts": 2,
        "restarts": 1,
        "strategy": "pipeline",
        "schedule": "ring",
        "device": "cuda",
        "dtype": "bfloat16",
        "world_size": 2,
        "utilization": 0.6,
        "bubble": 0.25,
        "flop_utilization": None,
        "bandwidth_utilization": None,
        "gpu_hours": 2.07,
        "stages": [stage(0, 0), stage(0, 1)],
        "predicted": Predicted(tokens_per_s=510, wall_s=3500, bubble=0.02).model_dump(),
    }
    return {**values, **changes}


def state(**changes: Any) -> dict[str, Any]:
    now = time.time()
    attempt = {"name": "w0000-a0001", "world": 0, "host": "node1", "job_id": "77_0", "started": 0.0}
    rank = {"attempt": "w0000-a0001", "rank": 0, "replica": 0, "host": "node1", "phase": "running"}
    seen = {"phase_since": now - 90, "updated": now, "rows_done": 410, "rows_failed": 2}
    seen |= {"last_phase": "running", "heard_s": 0.0}
    values: dict[str, Any] = {
        "run": "demo-0001",
        "path": "/runs/demo-0001",
        "state": "running",
        "rows": {"total": 1000, "done": 412, "failed": 2},
        "tokens_per_s": 812.3,
        "eta_s": 312.0,
        "scheduler": "slurm",
        "jobs": {"77_0": "running", "77_1": "pending"},
        "attempts": [
            {**attempt, "draining": None, "outcome": None, "state": "running", "error": None}
        ],
        "ranks": [{**rank, **seen, "completion_tokens": 20_000}],
        "failure": None,
    }
    return {**values, **changes}


def pipelined(nodes: int = 2) -> Plan:
    """Eight stages over two nodes, with what is predicted of each."""
    devices = [
        device(0, number, 15.9, (10 * number, 10 * number + 9)).model_copy(
            update={"rank": number, "utilization": 0.91, "bubble": 0.086}
        )
        for number in range(8)
    ]
    placements = [Placement(rank=r, replica=0, node=r * nodes // 8, stage=r) for r in range(8)]
    return plan(
        strategy="pipeline", schedule="ring", devices=devices, placements=placements, nodes=nodes
    )


ALL = [
    plan_table(pipelined()),
    plan_table(plan()),
    summary_table(summary()),
    runs_table([state()]),
    status_table(state()),
]


def test_runs_of_the_same_name_are_called_by_their_directories() -> None:
    rows = [state(run="a-0001", path=f"/{user}/a-0001") for user in ("one", "two")]
    shown = " ".join(lines(runs_table([*rows, state(run="b-0001", path="/one/b-0001")])))
    assert "/one/a-0001" in shown and "/two/a-0001" in shown
    assert "b-0001" in shown and "/one/b-0001" not in shown


def test_plan_says_what_sits_where() -> None:
    shown = lines(
        plan_table(plan(predicted=Predicted(tokens_per_s=212.4, wall_s=7823, bubble=0.75)))
    )
    assert (
        shown[0]
        == "fits: sequential, 69.0 B parameters, 128 GiB in bfloat16, 1 node x 4 GPUs, 1 rank"
    )
    (first,) = [line for line in shown if "cuda:0" in line]
    assert first.split()[:6] == ["0", "cuda:0", "0-41", "67.3", "GiB", "1.00"]
    assert first.endswith("68.8 of 70.0 GiB")
    (empty,) = [line for line in shown if line.startswith("2")]
    assert "empty" in empty and empty.endswith("0 of 70.0 GiB")
    assert "KV cache 1.95 GiB per replica (320 KiB per token), room for 19 more slots" in " ".join(
        shown
    )
    assert "predicted: 212 tok/s, done in 2h10m, 75 % bubble" in shown
    assert shown[-1] == "! GPUs cuda:2 and cuda:3 stay empty"


def test_equal_replicas_are_shown_once_and_others_all() -> None:
    shown = lines(plan_table(plan(replicas=3)))
    assert "and 2 more replicas like it" in shown
    assert len([line for line in shown if "cuda:0" in line]) == 1
    uneven = plan(replicas=2)
    uneven = uneven.model_copy(update={"devices": [*uneven.devices[:4], device(1, 0, 30, (0, 79))]})
    shown = lines(plan_table(uneven))
    assert [line.split()[0] for line in shown if "cuda:0" in line] == ["0.0", "1.0"]
    assert "node 1 cuda:0" in " ".join(shown)


def test_a_plan_that_does_not_fit_says_so_first_and_why() -> None:
    reason = "stage 0 needs 71.2 GiB of 70.0 GiB"
    shown = lines(plan_table(plan(fits=False, reasons=[reason])))
    assert shown[0].startswith("does not fit: ")
    assert shown[-1] == f"! {reason}"
    assert "more slot" not in " ".join(shown)


def test_many_devices_are_cut_and_counted() -> None:
    many = [device(0, number, 1 + number / 100, (number, number)) for number in range(40)]
    shown = lines(plan_table(plan(devices=many)))
    assert "... and 8 more in plan.json" in shown
    shown = lines(summary_table(summary(stages=[stage(r, s) for r in range(10) for s in range(4)])))
    assert "... and 8 more in summary.json" in shown


def test_summary_puts_measured_beside_predicted() -> None:
    shown = lines(summary_table(summary()))
    assert shown[0] == "demo-0001: pipeline (ring), 2 ranks on cuda, bfloat16, 2 attempts"
    rows = {line.split("  ")[0]: line.split() for line in shown}
    assert rows["tokens/s"][1:3] == ["478", "510"]
    assert rows["tokens/s"][3:] == ["+7", "%", "17,208", "new", "tokens", "in", "1h00m"]
    assert rows["wall time"][2:4] == ["1h02m", "58m20s"]
    assert rows["bubble"][1:7] == ["25", "%", "2.0", "%", "-23", "pt"]
    assert rows["rows"][1:] == ["1,000", "998", "ok,", "2", "failed:", "see", "errors.jsonl"]
    assert "half within 0.31s, 95 % within 0.81s" in " ".join(rows["first token"])
    assert "FLOPs" not in rows


def test_summary_shows_every_share_of_every_stage() -> None:
    shown = lines(summary_table(summary()))
    (row,) = [line for line in shown if "node1 cuda:1" in line]
    assert row.split()[:4] == ["1", "node1", "cuda:1", "0-7"]
    assert row.endswith("60 %    25 %    10 %      0 %  4.0 %  1.0 %  3.00 GiB")
    bar = row.split()[4]
    assert bar.count("█") == round(0.6 * len(bar)) and len(bar) >= 8
    assert shown[-1].split() == ["█", "busy", "░", "bubble", "▓", "transfer", "▒", "weights", "·", "host", "gap", "no", "work"]  # fmt: skip


def test_summary_of_an_array_names_the_world() -> None:
    stages = [stage(0, 0), stage(0, 0, world=1)]
    shown = lines(summary_table(summary(stages=stages)))
    assert [line.split()[0] for line in shown if "cuda:0" in line] == ["0.0", "1.0"]


def test_shards_have_a_number_behind_that_of_their_stage() -> None:
    places = [(r, s, shard) for r in range(2) for s in range(2) for shard in range(2)]
    stages = [stage(r, s, shard=shard) for r, s, shard in places]
    shown = lines(summary_table(summary(stages=stages[:4])))
    named = [line.split()[0] for line in shown if "cuda:" in line]
    assert named == ["0.0", "0.1", "1.0", "1.1"]
    shown = lines(summary_table(summary(stages=stages)))
    named = [line.split()[0] for line in shown if "cuda:" in line]
    assert named == [f"{r}.{s}.{shard}" for r, s, shard in places]
    devices = [
        device(0, s, 10, (40 * s, 40 * s + 39)).model_copy(update={"shard": shard})
        for _, s, shard in places[:4]
    ]
    made = plan(strategy="pipeline", schedule="ring", devices=devices, reasons=[])
    named = [line.split()[0] for line in lines(plan_table(made)) if "cuda:" in line]
    assert named == ["0.0", "0.1", "1.0", "1.1"]


@pytest.mark.parametrize(
    ("candidate", "said"),
    [
        ({"strategy": "sequential"}, "sequential"),
        ({"strategy": "streamed", "replicas": 2}, "2 x streamed"),
        ({"strategy": "pipeline", "stages": 4, "ranks": 4}, "pipeline 4"),
        ({"strategy": "pipeline", "stages": 2, "tensor": 2, "ranks": 4}, "pipeline 2 of 2"),
        ({"strategy": "tensor", "tensor": 2, "ranks": 2}, "tensor 2"),
        ({"strategy": "tensor", "tensor": 2, "ranks": 1}, "tensor 2, threads"),
        ({"strategy": "tensor", "tensor": 2, "replicas": 2, "ranks": 2}, "2 x tensor 2, threads"),
        ({"strategy": "tensor", "tensor": 1, "ranks": 1}, "tensor 1"),
    ],
)
def test_no_two_ways_to_run_it_have_one_name(candidate: dict[str, Any], said: str) -> None:
    assert split({"stages": 1, "tensor": 1, "replicas": 1, "ranks": 1} | candidate) == said


def test_what_is_not_known_is_a_dash() -> None:
    unknown = dict.fromkeys([*SHARES, "peak_memory_bytes", "host"])
    names = ("wall_s", "load_s", "generate_s", "tokens_per_s", "utilization", "bubble", "gpu_hours")
    nothing = {**dict.fromkeys(names), "ttft_s": dict.fromkeys(("mean", "p50", "p95"))}
    shown = lines(summary_table(summary(**nothing, stages=[stage(**unknown)])))
    (row,) = [line for line in shown if "cuda:0" in line]
    assert row.split() == ["0", "cuda:0", "0-7", *["-"] * 7]
    (speed,) = [line for line in shown if line.startswith("tokens/s")]
    assert speed.split()[1:3] == ["-", "510"]


def test_runs_are_one_line_each() -> None:
    done = state(run="demo-0002", state="complete", tokens_per_s=None, eta_s=None, jobs={})
    shown = lines(runs_table([state(), done]))
    assert shown[2].split() == [
        "demo-0001",
        "running",
        "1,000",
        "41",
        "%",
        "2",
        "812",
        "5m12s",
        "77_0",
        "77_1",
    ]
    assert shown[3].split() == ["demo-0002", "complete", "1,000", "41", "%", "2", "-", "-"]


def test_status_shows_rows_jobs_attempts_and_ranks() -> None:
    shown = lines(status_table(state()))
    assert shown[:2] == ["demo-0001: running", "/runs/demo-0001"]
    assert shown[3].endswith("412 of 1,000 rows, 2 failed, 812 tok/s, 5m12s left")
    assert shown[3].count("█") == 8
    assert "slurm: 77_0 running, 77_1 pending" in shown
    assert "w0000-a0001  1970-01-01 00:00:00  node1  77_0  running" in shown
    assert shown[-1].split()[:7] == ["0", "0", "node1", "running", "1m30s", "410", "2"]
    (rank,) = state()["ranks"]
    gone = {**rank, "phase": "gone", "heard_s": 40.0}
    shown = lines(status_table(state(ranks=[gone])))
    assert "gone, was running" in shown[-1]
    assert shown[-1].endswith("40.0s ago")


def test_status_of_a_failed_run_says_what_to_do() -> None:
    failure = {
        "what": "out of memory\nlast line",
        "where": "rank 1 on n2",
        "cause": "too many slots",
        "fix": "resume",
    }
    shown = lines(
        status_table(state(state="failed", failure=failure, ranks=[], attempts=[], jobs={}))
    )
    assert shown[-4:] == [
        "rank 1 on n2: out of memory",
        "last line",
        "  likely cause: too many slots",
        "  next: resume",
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


@pytest.mark.parametrize("width", [80, 96, 140])
def test_stages_are_shown_with_what_is_predicted_of_them(width: int) -> None:
    shown = lines(plan_table(pipelined()), width)
    head = next(line for line in shown if "peak of capacity" in line)
    assert "busy" in head
    assert "bubble" in head
    assert ("activations" in head) == (width > 80)
    rows = [line for line in shown if " GiB" in line and "cuda" in line]
    assert len(rows) == 8
    assert all("91 %" in row and "8.6 %" in row for row in rows)
    assert "busy" not in "".join(lines(plan_table(plan()), width))


def test_busy_share_of_a_stage_beside_the_planned_one() -> None:
    stages = [stage(0, 0, predicted={"busy": 0.97, "bubble": 0.03}), stage(0, 1)]
    shown = lines(summary_table(summary(stages=stages)), 120)
    assert any("plan" in line for line in shown)
    assert "97 %  60 %" in next(line for line in shown if "cuda:0" in line)
    assert not any("plan" in line for line in lines(summary_table(summary()), 120))
