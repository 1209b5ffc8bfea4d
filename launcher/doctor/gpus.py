"""The GPUs of this node: the driver's account of them, and whether torch can use them."""

from __future__ import annotations

from collections.abc import Iterator

from launcher import environ
from launcher.doctor.finding import Finding, ask
from launcher.report.units import size

AREA = "gpus"
QUERY = "index,name,driver_version,memory.total,memory.used,compute_mode,ecc.errors.uncorrected.volatile.total"
BUSY_MIB = 1024


def examine() -> Iterator[Finding]:
    """What nvidia-smi says, and what torch says."""
    text = ask(["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"])
    lines = (text or "").splitlines()
    if not lines:
        says = "none here (nvidia-smi does not answer): ranks are CPU processes"
        yield Finding(AREA, "driver", "note", says)
    for line in lines:
        yield from judge([cell.strip() for cell in line.split(",")])
    if lines:
        yield _torch(len(lines))


def judge(cells: list[str]) -> Iterator[Finding]:
    """One line of nvidia-smi, in the order of QUERY."""
    index, name, driver, total, used, mode, errors = cells
    check = f"GPU {index}"
    says = f"{name}, {size(_whole(total) << 20)}, driver {driver}"
    if mode.startswith("Exclusive"):
        says += f", compute mode {mode}"
    if _whole(errors):
        remedy = "ask the administrators to reset or to drain it; slurm.exclude leaves the node out"
        says = f"{says}: {errors} memory errors that could not be corrected"
        yield Finding(AREA, check, "problem", says, remedy)
    elif mode == "Prohibited":
        yield Finding(AREA, check, "problem", f"{says}: compute mode {mode}", "nvidia-smi -c 0")
    elif _whole(used) > BUSY_MIB:
        says += f": {size(_whole(used) << 20)} of it in use already"
        yield Finding(AREA, check, "warning", says, "nvidia-smi shows by whom")
    else:
        yield Finding(AREA, check, "ok", says)


def _torch(seen: int) -> Finding:
    import torch

    shown = environ.visible_gpus()
    expected = seen if shown is None else len(shown)
    if not torch.cuda.is_available():
        built = torch.version.cuda
        says = f"torch {torch.__version__} can't use them"
        remedy = (
            "install the CUDA build of torch" if built is None else f"a driver for CUDA {built}"
        )
        return Finding(AREA, "torch", "problem", says, remedy)
    found = torch.cuda.device_count()
    if found != expected:
        says = f"torch sees {found} GPUs, {expected} are there"
        return Finding(AREA, "torch", "warning", says, "look at CUDA_VISIBLE_DEVICES")
    for index in range(found):
        torch.ones(256, 256, device=f"cuda:{index}").sum().item()
    says = f"{torch.__version__} computes on all {found} (CUDA {torch.version.cuda})"
    return Finding(AREA, "torch", "ok", says)


def _whole(cell: str) -> int:
    return int(cell) if cell.isdecimal() else 0  # "[N/A]" where there is no such counter
