"""How much of what the devices could do was used: model FLOP and bandwidth utilisation."""

from __future__ import annotations

from launcher.measure.spans import COMPUTE
from launcher.plan.plan import DevicePlan, Plan
from launcher.report.measured import Measured


def compute_devices(plan: Plan) -> list[DevicePlan]:
    """The devices that can compute: where there are GPUs, layers on the CPU or disk are run on a GPU."""
    return [device for device in plan.devices if device.device.startswith(plan.device)]


def use_of_peaks(plan: Plan, attempts: list[Measured], tokens: int) -> dict[str, float | None]:
    """``flop_utilization`` and ``bandwidth_utilization`` as shares; None where the plan knows no peak.

    Model FLOPs are 2 x parameters x tokens (prompt and new ones of the rows that are kept), as in "Efficiently
    Scaling Transformer Inference" (Pope et al., 2022). Bandwidth counts the weights, read once by each step, and
    leaves the KV cache out, so it is a lower bound.
    """
    devices = compute_devices(plan)
    replicas = len({device.replica for device in devices}) or 1
    windows = sum(end - begin for m in attempts for begin, end in m.windows)
    seconds = windows * len(devices) / replicas  # of all devices together
    flops = 2 * plan.parameters * tokens
    weights_read = sum(
        _steps(m, device) * device.weights_bytes for m in attempts for device in devices
    )
    return {
        "flop_utilization": _share(flops, seconds, plan.peak_flops),
        "bandwidth_utilization": _share(weights_read, seconds, plan.peak_bandwidth),
    }


def _share(amount: float, seconds: float, peak: float | None) -> float | None:
    return amount / seconds / peak if seconds and peak else None


def _steps(measured: Measured, device: DevicePlan) -> int:
    """Steps of the device's rank; where its devices are not told apart, each step goes through all of them."""
    counts = [
        sum(kinds[kind][1] for kind in COMPUTE if kind in kinds)
        for (rank, _), kinds in measured.totals.items()
        if rank == device.rank
    ]
    return max(counts, default=0)
