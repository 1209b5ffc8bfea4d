"""Predicted beside measured: the one list of pairs that summary.json, the report and `launcher plan --check` show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from launcher.errors import Damaged, RunFailed
from launcher.plan.plan import DevicePlan, Plan
from launcher.report import units
from launcher.run import Run, read_json

Unit = Literal["tokens/s", "tokens", "s", "share", "bytes", "h"]
SHOW: Mapping[Unit, Callable[[float | None], str]] = {
    "tokens/s": units.amount,
    "tokens": units.amount,
    "s": units.duration,
    "share": units.percent,
    "bytes": units.size,
    "h": units.amount,
}


@dataclass(frozen=True)
class Figure:
    """What is predicted and measured under one ``name``."""

    name: str
    label: str
    unit: Unit


RUN = (
    Figure("tokens_per_s", "tokens/s", "tokens/s"),
    Figure("new_tokens", "new tokens", "tokens"),
    Figure("wall_s", "wall time", "s"),
    Figure("load_s", "loading", "s"),
    Figure("generate_s", "generating", "s"),
    Figure("utilization", "busy", "share"),
    Figure("bubble", "bubble", "share"),
    Figure("gpu_hours", "GPU hours", "h"),
    Figure("read_bytes_per_token", "read per token", "bytes"),
)
STAGE = (
    Figure("busy", "busy", "share"),
    Figure("transfer", "transfer", "share"),
    Figure("weights", "waiting for weights", "share"),
    Figure("bubble", "bubble", "share"),
    Figure("prefill_s", "prefill", "s"),
    Figure("decode_s", "decode", "s"),
    Figure("load_s", "loading", "s"),
    Figure("bytes_read", "read while loading", "bytes"),
    Figure("peak_memory_bytes", "peak memory", "bytes"),
    Figure("weights_bytes", "weights", "bytes"),
    Figure("kv_bytes", "KV cache", "bytes"),
    Figure("activation_bytes", "activations", "bytes"),
)
OF_SCRIPT = ("wall_s", "gpu_hours")  # it has ranks and attempts, and no rows
# These are predicted of all rows, and what is measured grows until the last one is done.
GROWING = ("new_tokens", "wall_s", "generate_s", "gpu_hours", "prefill_s", "decode_s")
PLACE = ("world", "replica", "stage", "shard", "rank", "device")


@dataclass(frozen=True)
class Pair:
    """A figure of the run, or of the device at ``place``. ``difference`` is predicted less measured: of shares that,
    of others over the measured one. ``missing`` says why there is none."""

    figure: str
    label: str
    unit: Unit
    place: dict[str, Any] | None
    predicted: float | None
    measured: float | None
    difference: float | None
    missing: str | None


def compare(plan: Plan, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A pair for every figure that ``plan`` predicts or that its strategy could have, of the run and of each device
    that computes, as in ``summary`` (summary.json, without its pairs)."""
    rows, pairs = summary["rows"], (*_of_run(plan, summary), *_of_stages(plan, summary))
    under_way = rows["ok"] + rows["failed"] < rows["total"]
    return [asdict(_so_far(pair) if under_way else pair) for pair in pairs]


def _so_far(pair: Pair) -> Pair:
    """Of a run under way: nothing that grows is compared with what it comes to in the end."""
    if pair.figure not in GROWING:
        return pair
    return replace(pair, difference=None, missing=pair.missing or "the run is not over")


def pairs_of(run: Run, state: str) -> list[dict[str, Any]]:
    """The pairs of a complete run, from its plan.json and summary.json. Raises RunFailed for one that is not complete;
    ``state`` is what it is instead; Damaged for files that are none of these."""
    plan, summary = Plan.read(run.plan), read_json(run.summary)
    if summary is None or not run.manifest.exists():
        under_way = state in ("queued", "running")
        raise RunFailed(
            f"the run is not complete, so there is nothing to check the plan with: it is {state}",
            where=str(run.path),
            fix=f"launcher status {run.path}" if under_way else f"launcher resume {run.path}",
        )
    try:
        return compare(plan, summary)
    except (LookupError, TypeError, AttributeError) as error:
        raise Damaged(
            f"not the summary of this run's plan: {error!r}",
            where=str(run.summary),
            cause="another version of the launcher made it, or somebody edited it",
            fix=f"remove it, and launcher resume {run.path} makes it again",
        ) from None


def off(pair: Mapping[str, Any]) -> str:
    """The difference as a person reads it; nothing where there is none."""
    if pair["difference"] is None:
        return ""
    points = pair["unit"] == "share"
    return units.off(pair["measured"], pair["predicted"], points)


def of_run(pairs: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those of the whole run."""
    return [pair for pair in pairs if pair["place"] is None]


def of_stages(pairs: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those of devices."""
    return [pair for pair in pairs if pair["place"] is not None]


def expected_of_run(plan: Plan) -> dict[str, float | None]:
    """What the plan says of the run, all of its worlds together, by the names of what is measured."""
    expected = plan.predicted.model_dump()
    if expected["tokens_per_s"] is not None:
        expected["tokens_per_s"] *= plan.worlds
    return expected


def tokens_of(task: str) -> str:
    """What the counted tokens of ``task`` are: score generates none."""
    return "scored tokens" if task == "score" else "new tokens"


def _of_run(plan: Plan, summary: Mapping[str, Any]) -> Iterable[Pair]:
    expected = expected_of_run(plan)
    for figure in RUN:
        if plan.strategy == "script" and figure.name not in OF_SCRIPT:
            continue
        value, planned = summary.get(figure.name), expected.get(figure.name)
        missing = _unpredicted(plan, figure) if planned is None else _unmeasured(figure)
        label = tokens_of(plan.task) if figure.name == "new_tokens" else figure.label
        yield _pair(replace(figure, label=label), None, planned, value, missing)


def _of_stages(plan: Plan, summary: Mapping[str, Any]) -> Iterable[Pair]:
    devices = {(d.replica, d.stage, d.shard): d for d in plan.devices}
    for stage in summary["stages"]:
        device = devices[stage["replica"], stage["stage"], stage.get("shard", 0)]
        expected = expected_of_device(device)
        place = {name: stage.get(name) for name in PLACE}
        # Ranks tell the two together; where they don't, the summary has the plan's weights.
        unknown = {"weights_bytes"} if stage.get("kv_bytes") is None else set()
        for figure in STAGE:
            planned = expected[figure.name]
            value = None if figure.name in unknown else stage.get(figure.name)
            missing = _unpredicted(plan, figure) if planned is None else _untold(stage, figure)
            yield _pair(figure, place, planned, value, missing)


def expected_of_device(device: DevicePlan) -> dict[str, float | None]:
    """What the plan says of a device, by the names of what is measured."""
    return {
        **{name: getattr(device, name, None) for name in (figure.name for figure in STAGE)},
        "busy": device.utilization,
        "peak_memory_bytes": device.peak_bytes,
    }


def _pair(
    figure: Figure,
    place: dict[str, Any] | None,
    predicted: float | None,
    measured: float | None,
    missing: str,
) -> Pair:
    difference = None
    if predicted is not None and measured is not None:
        if figure.unit == "share":
            difference = predicted - measured
        elif measured:
            difference = predicted / measured - 1
        else:
            missing = "nothing was measured to compare with: it was 0"
    why = missing if difference is None else None
    return Pair(figure.name, figure.label, figure.unit, place, predicted, measured, difference, why)


def _unpredicted(plan: Plan, figure: Figure) -> str:
    if figure.name == "gpu_hours" and not plan.gpus_per_node:
        return "the run has no GPUs"
    if plan.strategy == "script":
        return "what a script does is not predicted"
    if figure.name == "read_bytes_per_token":
        return "no weights are read while generating"
    if plan.predicted.tokens_per_s is None:
        return "the plan says why: the speed of this backend is not predicted"
    return "not in the plan: an older version made it"


def _unmeasured(figure: Figure) -> str:
    return "no attempt left what it is measured by: timelines and status files in the run directory"


def _untold(stage: Mapping[str, Any], figure: Figure) -> str:
    if figure.name == "activation_bytes":
        return "what steps take for a moment is measured within the peak memory alone"
    if stage.get("host") is None:
        return f"rank {stage['rank']} left no status"
    if figure.unit == "share" or figure.name in ("prefill_s", "decode_s"):
        return f"the devices of rank {stage['rank']} are not told apart, or it left no timeline"
    return f"rank {stage['rank']} tells it when it ends well, and of all its devices together"
