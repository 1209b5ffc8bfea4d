"""Models of the hub: resolved to a commit and fetched where there is a network (the login node).

Ranks then load the local copy by its path and ask no network. Weights are safetensors only: a
pickle runs code when it is read.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from launcher.errors import PreflightError
from launcher.hub.code import check_own, has_code, is_pinned, not_pinned
from launcher.hub.errors import HubFailure, HubUnreachable, catching, not_a_model, refusal
from launcher.hub.files import CONFIG, has_weights, is_complete, is_small, small_json, weight_files
from launcher.hub.progress import bars
from launcher.job.spec import JobSpec, ModelSpec

Say = Callable[[str], None]


@dataclass(frozen=True)
class ResolvedModel:
    """Where a model is. ``name`` is what the spec calls it.

    ``path`` is None where it was not fetched; ``commit`` is None for a directory, and where the
    hub could not be asked. ``note`` says why the hub's own answer is not used.
    """

    name: str
    path: Path | None
    commit: str | None
    source: Literal["directory", "cache", "hub"]
    note: str | None = None

    def in_spec(self, spec: JobSpec) -> JobSpec:
        """``spec`` with the model's local path and commit, as far as they are known."""
        path = str(self.path or spec.model.path)
        return spec.with_model(path, self.commit or spec.model.revision)


def resolve_model(
    model: ModelSpec, *, fetch: bool = True, progress: Say | None = None
) -> ResolvedModel:
    """The directory of a model, fetched from the hub if it is a hub id and ``fetch`` is set.

    Where the hub can't be reached or says no, a complete cached copy is used; without one, and
    with nothing to fetch, a hub out of reach is no error. ``progress`` is given a line of text
    every few seconds. Raises PreflightError for a model that can't be had, UsageError where the spec trusts code that
    nobody can have read.
    """
    found = _resolve(model, fetch, progress)
    if model.trust_remote_code and found.path is not None:
        check_own(found.path)
    return found


def _resolve(model: ModelSpec, fetch: bool, progress: Say | None) -> ResolvedModel:
    folder = Path(model.path)
    if folder.is_dir():
        return ResolvedModel(model.path, folder.absolute(), None, "directory")
    if not _is_hub_id(model.path):
        raise not_a_model(model.path)
    if not is_pinned(model):
        raise not_pinned(model, _commit(model))
    cached = _cached(model.path, model.revision)
    if cached and model.trust_remote_code and not has_code(cached):
        cached = None  # it was fetched when nobody trusted it
    if cached and cached.name == model.revision:  # a commit does not change
        return ResolvedModel(model.path, cached, cached.name, "cache")
    try:
        with catching():
            return _ask_hub(model, fetch, progress)
    except HubFailure as failure:
        refused = refusal(failure.error, model.path, model.revision)
    if cached:
        return ResolvedModel(model.path, cached, cached.name, "cache", note=refused.what)
    if not fetch and isinstance(refused, HubUnreachable):
        return ResolvedModel(model.path, None, None, "hub", note=refused.what)
    raise refused


def remote_metadata(
    name: str, commit: str | None
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The config of a hub model, and the header of each of its safetensors files by file name; none where it has no
    weights of any kind.

    Headers are the JSON objects at the head of the files, read by HTTP range; no weights are
    fetched. Raises PreflightError.
    """
    from huggingface_hub import HfApi

    try:
        with catching(), ThreadPoolExecutor(8) as pool:
            info = HfApi().model_info(name, revision=commit)
            files = _names(info)
            weights = weight_files(name, commit, files) if has_weights(files) else []
            headers = pool.map(lambda file: _header(name, file, commit), weights)
            return small_json(name, CONFIG, commit), dict(zip(weights, headers, strict=True))
    except HubFailure as failure:
        raise refusal(failure.error, name, commit) from None


def _header(name: str, file: str, commit: str | None) -> dict[str, Any]:
    from huggingface_hub import HfApi

    found = HfApi().parse_safetensors_file_metadata(name, file, revision=commit)
    tensors: dict[str, Any] = {
        tensor: {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "data_offsets": list(info.data_offsets),
        }
        for tensor, info in found.tensors.items()
    }
    return {"__metadata__": found.metadata, **tensors} if found.metadata else tensors


def _is_hub_id(name: str) -> bool:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _cached(name: str, revision: str | None) -> Path | None:
    """The folder of a complete copy in the cache, whoever put it there."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, CONFIG, revision=revision)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    return folder if is_complete(folder) else None


def _commit(model: ModelSpec) -> str | None:
    """What the revision stands for now, if somebody can tell."""
    from huggingface_hub import HfApi

    cached = _cached(model.path, model.revision)
    try:
        with catching():
            return HfApi().model_info(model.path, revision=model.revision).sha
    except HubFailure:
        return cached.name if cached else None


def _ask_hub(model: ModelSpec, fetch: bool, progress: Say | None) -> ResolvedModel:
    from huggingface_hub import HfApi, snapshot_download

    info = HfApi().model_info(model.path, revision=model.revision)
    if not fetch:
        path = _cached(model.path, info.sha)
        return ResolvedModel(model.path, path, info.sha, "cache" if path else "hub")
    files = _names(info)
    wanted = [file for file in files if is_small(file, model.trust_remote_code)]
    wanted += weight_files(model.path, info.sha, files)
    # By branch, not by commit: the cache then knows the branch, should the hub be out of reach.
    options: dict[str, Any] = {"tqdm_class": bars(model.path, progress)} if progress else {}
    path = Path(
        snapshot_download(model.path, revision=model.revision, allow_patterns=wanted, **options)
    )
    if not is_complete(path):
        raise PreflightError(
            f"the copy of {model.path} is not complete",
            where=str(path),
            cause="the model was changed on the hub while it was fetched",
            fix="run the command again",
        )
    return ResolvedModel(model.path, path, path.name, "hub")


def _names(info: Any) -> list[str]:
    return [sibling.rfilename for sibling in info.siblings or []]
