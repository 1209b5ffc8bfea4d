"""The program's table of contents: load the spec, plan, create the run. control.py hands it to a scheduler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from launcher import registry, strategies
from launcher.disk import private, write_json
from launcher.errors import DoesNotFit, LauncherError, PreflightError, SpecError, UsageError
from launcher.hub import resolve as hub
from launcher.input import prompts
from launcher.input.tokens import bytes_per_token
from launcher.job import accelerate
from launcher.job.load import LoadedSpec, dump_spec, load_spec
from launcher.job.spec import JobSpec, ModelSpec
from launcher.plan import choose
from launcher.plan.checkpoint import Checkpoint
from launcher.plan.loadable import check_loadable
from launcher.plan.machines import Machines
from launcher.plan.plan import Plan
from launcher.plan.possible import check_attention, machines_for
from launcher.plan.script import plan_script, ranks_per_node
from launcher.plan.sums import verify_weights
from launcher.records import Demand
from launcher.run import Run, publish
from launcher.schedulers import slurm

SCAN_BYTES = 8 << 20  # of the input, while planning; all of it is read when a run is created
TOKENIZERS = ("tokenizer*", "vocab*", "*.model", "*.tiktoken")


@dataclass(frozen=True)
class Planned:
    """A spec with what follows from it. ``spec`` has the model's local path and commit where they are known, and what
    ``strategy: auto`` came to; ``asked`` has that open. A script has no ``checkpoint``."""

    loaded: LoadedSpec
    asked: JobSpec
    spec: JobSpec
    checkpoint: Checkpoint | None
    machines: Machines
    here: bool
    plan: Plan
    verified: dict[str, dict[str, Any]] | None = None  # what `verify_weights` saw of each file


def plan_job(
    spec: Path | LoadedSpec,
    overrides: Sequence[str],
    *,
    here: bool,
    say: Callable[[str], None],
    fetch: bool = True,
    verify: bool = False,
) -> Planned:
    """Load, check and plan a spec (a file's, unless it is loaded already) for this machine (``here``) or for Slurm; writes nothing.

    ``fetch``: download a hub model that is not here; ``verify``: compare the weights with their recorded sha256. Raises SpecError, UsageError, PreflightError.
    """
    loaded = spec if isinstance(spec, LoadedSpec) else load_spec(spec, overrides)
    machines = machines_for(loaded, here)
    _check_wandb(loaded)
    if loaded.spec.script is not None:
        return _plan_script(loaded, machines, here)
    model = hub.resolve_model(loaded.spec.model, fetch=fetch, progress=say)
    asked = model.in_spec(loaded.spec)
    checkpoint = _checkpoint(model)
    trusted = asked.model.trust_remote_code
    check_loadable(checkpoint.config, checkpoint.where, trusted=trusted)
    check_attention(loaded, checkpoint.config, checkpoint.dtype(asked.model.dtype))
    demand = prompts.scan(asked, SCAN_BYTES)
    chosen, plan = _place(loaded, asked, checkpoint, machines, demand)
    verified = _verify(checkpoint, say) if verify else None
    return Planned(loaded, asked, chosen, checkpoint, machines, here, plan, verified)


def check_model(model: ModelSpec) -> None:
    """Raises PreflightError, UsageError for a model of which no plan can be made; fetches nothing."""
    found = _checkpoint(hub.resolve_model(model, fetch=False))
    check_loadable(found.config, found.where, trusted=model.trust_remote_code)


def _verify(checkpoint: Checkpoint, say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    checkpoint.check_weights()
    if checkpoint.path is None:
        raise PreflightError(
            "the weights are not here, so they can't be verified",
            where=checkpoint.where,
            fix="launcher submit fetches them, and verifies them with --verify-weights",
        )
    files = {tensor.file for tensor in checkpoint.tensors.values()}
    return verify_weights(checkpoint.path, files, say)


def _plan_script(loaded: LoadedSpec, machines: Machines, here: bool) -> Planned:
    """Of task script. The options of accelerate are those of the one that is installed here."""
    spec = loaded.spec
    chosen = accelerate.schema().model_validate(spec.accelerate)
    ranks = ranks_per_node(spec, machines) * machines.nodes
    plan = plan_script(spec, machines, accelerate.config(chosen, ranks))
    return Planned(loaded, spec, spec, None, machines, here, plan)


def _check_wandb(loaded: LoadedSpec) -> None:
    """Raises PreflightError where the spec asks for W&B and it is not installed."""
    if loaded.spec.wandb.project is None:
        return
    try:
        distribution("wandb")
    except PackageNotFoundError:
        raise PreflightError(
            "W&B is not installed",
            where=loaded.where("wandb.project"),
            fix="pip install 'launcher[wandb]', or take the section `wandb` out",
        ) from None


def with_script(planned: Planned, run_dir: Path | None) -> Planned:
    """The plan with the sbatch script of the run that would be created. Raises Busy and UsageError where none can be."""
    run = Run(run_dir or next_dir(planned.spec))
    run.check_free()
    script = slurm.script(run.path, planned.spec, planned.plan)
    return replace(planned, plan=planned.plan.model_copy(update={"script": script}))


def check_weights(planned: Planned) -> None:
    """Raises WeightsError where there is a config alone, of which a plan can be made and no run."""
    if planned.checkpoint is not None:
        planned.checkpoint.check_weights()


@private()
def create_run(planned: Planned, run_dir: Path | None) -> Run:
    """The run directory, ready to start: spec, plan and input index in it. Nothing stays behind if that fails.

    Raises WeightsError for a model without weights, DoesNotFit for a plan that does not fit, as ``Run.create``.
    """
    check_weights(planned)
    if not planned.plan.fits:
        raise _does_not_fit(planned.plan)
    run = Run.create(run_dir or next_dir(planned.spec), lambda run: _fill(run, planned))
    registry.register(run)
    return run


def next_dir(spec: JobSpec) -> Path:
    """Where the next run of this spec goes."""
    return registry.next_run_dir(Path(spec.output.dir), spec.name)


def _checkpoint(model: hub.ResolvedModel) -> Checkpoint:
    """From the local copy's headers, the hub's metadata, or the built-in table where the hub does not answer
    or wants a token that a plan does not need. Where there are no weights at all, from the config alone."""
    if model.path is not None:
        found = Checkpoint.read(model.path, bare=True)
        return _with_tokenizer(found, model.path)
    known = Checkpoint.known(model.name)
    if model.commit is None and known is None:
        raise PreflightError(
            f"{model.name} is not here, and the hub does not answer",
            where="model.path",
            cause=model.note,
            fix="run this where there is a network, or give a directory",
        )
    try:
        if model.commit is not None:
            config, headers = hub.remote_metadata(model.name, model.commit)
            if not headers:
                return Checkpoint.from_config(config, model.name)
            return Checkpoint.from_headers(config, headers)
    except PreflightError:
        if known is None:
            raise
    assert known is not None
    return known


def _with_tokenizer(found: Checkpoint, model: Path) -> Checkpoint:
    """``found``, with a note where it can do without a tokenizer since it is not to be loaded."""
    if any(path for pattern in TOKENIZERS for path in model.glob(pattern)):
        return found
    if found.bare:
        return replace(found, note=f"{found.note}; there is no tokenizer")
    raise PreflightError(
        "the model has no tokenizer",
        where=str(model),
        fix=f"put its files beside the weights: {', '.join(TOKENIZERS)}",
    )


def _place(
    loaded: LoadedSpec, spec: JobSpec, checkpoint: Checkpoint, machines: Machines, demand: Demand
) -> tuple[JobSpec, Plan]:
    """The strategy's plan, beside what else there would be; for ``auto`` the best of those, and the spec that says so."""
    local = Path(spec.model.path)
    demand = replace(demand, bytes_per_token=bytes_per_token(local, demand.excerpts))
    auto = spec.parallel.strategy == "auto"
    plans: list[tuple[JobSpec, Plan]] = []
    refusals: list[LauncherError] = []
    for each in [*([] if auto else [spec]), *choose.variants(spec, checkpoint, machines)]:
        strategy = strategies.get(each.parallel.strategy)
        try:
            loaded.check_section("parallel.options", strategy.Options, each.parallel.options)
            plan = strategy.place(checkpoint, machines, each, demand)
            if each is spec or choose.stands_alone(plan):
                plans.append((each, plan))
        except (SpecError, UsageError) as refusal:
            refusals.append(loaded.placed(refusal))
            if each is spec:
                raise
    if not plans:
        raise refusals[0]
    own = choose.best([plan for _, plan in plans]) if auto else plans[0][1]
    told = choose.candidates([plan for _, plan in plans], own)
    chosen = next(each for each, plan in plans if plan is own)
    return chosen, own.model_copy(update={"candidates": told})


def _fill(run: Run, planned: Planned) -> None:
    spec, plan = _indexed(run, planned) if planned.checkpoint else (planned.spec, planned.plan)
    if not planned.here:
        script = slurm.script(run.path, spec, plan)
        plan = plan.model_copy(update={"script": script})
    if planned.verified is not None:
        write_json(run.weights, planned.verified)
    if plan.accelerate is not None:
        write_json(run.accelerate, plan.accelerate)
        run.files.mkdir()
    for path, text in (
        (run.spec, planned.loaded.text),
        (run.plan, plan.model_dump_json(indent=1) + "\n"),
        (run.job, dump_spec(spec)),  # last: it is what makes the directory a run
    ):
        with publish(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _indexed(run: Run, planned: Planned) -> tuple[JobSpec, Plan]:
    """Index the input; spec and plan for all of it. Raises DoesNotFit."""
    assert planned.checkpoint is not None
    worlds = 1 if planned.here else planned.spec.slurm.array
    demand = prompts.build_index(
        planned.loaded.spec, run.input, planned.spec.parallel.replicas * worlds
    )
    spec = planned.asked
    spec, plan = _place(planned.loaded, spec, planned.checkpoint, planned.machines, demand)
    if not plan.fits:
        raise _does_not_fit(plan)
    return spec, plan


def _does_not_fit(plan: Plan) -> DoesNotFit:
    return DoesNotFit("; ".join(plan.reasons), fix="launcher plan shows what sits where")
