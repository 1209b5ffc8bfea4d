"""What a spec asks for that can't be had, though its words are right: told at once, before anything is planned. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from launcher.errors import Problem, UsageError
from launcher.job.load import LoadedSpec
from launcher.plan.attends import no_flash
from launcher.plan.dims import Config
from launcher.plan.machines import Machines, resolve_machines

LEAST_S = 60  # of a job before it is told to stop
DEEPSPEED_FILES = ("config_file", "deepspeed_config_file")


def machines_for(loaded: LoadedSpec, here: bool) -> Machines:
    """As ``resolve_machines``. Raises SpecError with the places of all that can't be had, machines or not."""
    rest = _of_rows if loaded.spec.script is None else _of_script
    found = [*_of_time(loaded), *rest(loaded)]
    try:
        machines = resolve_machines(loaded.spec, here)
    except UsageError as error:
        hint = "; ".join(text for text in (error.cause, error.fix) if text)
        raise loaded.refused([*found, _at(loaded, error.where or "", error.what, hint)]) from None
    if loaded.spec.model.attention == "flash_attention_2" and machines.device == "cpu":
        what = "flash_attention_2 runs on CUDA GPUs alone"
        found.append(_at(loaded, "model.attention", what, "attention: sdpa"))
    if found:
        raise loaded.refused(found)
    return machines


def check_attention(loaded: LoadedSpec, config: Config, dtype: str) -> None:
    """Raises SpecError where a model of this config, loaded in ``dtype``, can't attend as the spec says."""
    if loaded.spec.model.attention != "flash_attention_2":
        return
    if why := no_flash(config, dtype, branches=loaded.spec.task == "score"):
        what = f"flash_attention_2 can't be had: {why}"
        raise loaded.refused([_at(loaded, "model.attention", what, "attention: sdpa")])


def _at(loaded: LoadedSpec, name: str, what: str, hint: str | None = None) -> Problem:
    return Problem(loaded.where(name), what, hint)


def _of_time(loaded: LoadedSpec) -> Iterator[Problem]:
    """A job that would be told to stop as soon as it starts."""
    minutes, delay = loaded.spec.slurm.time_minutes, loaded.spec.slurm.signal_delay
    if minutes is not None and minutes * 60 < delay + LEAST_S:
        yield _at(
            loaded,
            "slurm.time",
            f"a job of {minutes} min is told to stop {delay:.0f} s before its end, before it has loaded anything",
            "a longer slurm.time, or a shorter slurm.signal_delay",
        )


def _of_rows(loaded: LoadedSpec) -> Iterator[Problem]:
    spec = loaded.spec
    template = spec.input.template
    if template not in ("auto", "none") and not Path(template).is_file():
        yield _at(
            loaded,
            "input.template",
            f"there is no chat template {template}",
            "auto, none, or a file relative to the spec",
        )


def _of_script(loaded: LoadedSpec) -> Iterator[Problem]:
    script = loaded.spec.script
    assert script is not None
    path = Path(script.path)
    if not path.is_file():
        yield _at(loaded, "script.path", f"there is no script {path}")
    elif path.suffix != ".py" and not os.access(path, os.X_OK):
        hint = f"chmod +x {path}, or name it .py"
        yield _at(loaded, "script.path", f"{path} is neither a Python file nor a program", hint)
    if not Path(script.directory).is_dir():
        yield _at(loaded, "script.directory", f"there is no folder {script.directory}")
    deepspeed = loaded.spec.accelerate.get("deepspeed") or {}
    for key in DEEPSPEED_FILES:
        if (file := deepspeed.get(key)) and not Path(file).is_file():
            yield _at(loaded, f"accelerate.deepspeed.{key}", f"there is no file {file}")
    if loaded.spec.slurm.array > 1:
        yield _at(
            loaded,
            "slurm.array",
            "the worlds of an array share rows, and a script has none",
            "submit it once per world, or use resources.nodes",
        )
