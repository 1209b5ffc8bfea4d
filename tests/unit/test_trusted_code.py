"""Code that comes with a model: off, and where it is on, that of one commit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hub_server import Hub, Model
from models import make_model
from test_hub import WHOLE, cut, hub  # noqa: F401 - a fixture

from launcher.errors import LauncherError, UsageError
from launcher.hub.resolve import resolve_model
from launcher.job.spec import ModelSpec
from launcher.model.weights import Loading, load_config, load_model

COMMIT = "c" * 40


def trusted(revision: str | None = COMMIT) -> ModelSpec:
    return ModelSpec(path="org/whole", revision=revision, trust_remote_code=True)


@pytest.mark.parametrize("revision", [None, "main", "v1.0", "c" * 39, COMMIT.upper()])
def test_a_name_that_its_owner_may_move_is_refused_with_the_commit_to_write(
    hub: Hub,  # noqa: F811
    revision: str | None,
) -> None:
    hub.models["org/whole"].commit = COMMIT
    with pytest.raises(UsageError) as caught:
        resolve_model(trusted(revision))
    if revision in (None, "main"):
        assert f"set model.revision: {COMMIT}" in str(caught.value)
        assert f"/org/whole/tree/{COMMIT}" in str(caught.value)
    assert "model.revision" in str(caught.value)
    assert hub.fetched() == set()


def test_without_a_network_the_fix_is_told_all_the_same(
    hub: Hub,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cut(monkeypatch)
    with pytest.raises(UsageError, match="40 digits of a commit"):
        resolve_model(trusted(None))


def test_code_of_a_commit_is_fetched_also_where_the_copy_was_made_without_it(
    hub: Hub,  # noqa: F811
) -> None:
    config = b'{"model_type": "x", "auto_map": {"AutoConfig": "modeling_x.XConfig"}}'
    hub.models["org/whole"] = Model(WHOLE | {"config.json": config})
    without = resolve_model(ModelSpec(path="org/whole", revision=COMMIT))
    assert without.path is not None and not (without.path / "modeling_x.py").exists()
    found = resolve_model(trusted())
    assert found.path is not None and (found.path / "modeling_x.py").is_file()
    asked = len(hub.requests)
    assert resolve_model(trusted()).source == "cache"
    assert len(hub.requests) == asked


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_of_another_repository_is_refused(tmp_path: Path, name: str) -> None:
    auto = {"AutoModelForCausalLM": "evil/repo--modeling.Model", "AutoTokenizer": [None, "own.T"]}
    (tmp_path / name).write_text(json.dumps({"auto_map": auto}))
    with pytest.raises(UsageError, match=r"another repository, evil/repo \(modeling\.py\)"):
        resolve_model(ModelSpec(path=str(tmp_path), trust_remote_code=True))
    assert resolve_model(ModelSpec(path=str(tmp_path))).path == tmp_path


def test_a_models_code_does_not_run_unless_it_is_trusted(tmp_path: Path) -> None:
    """A type that transformers does not know, whose config class leaves a mark when it is imported."""
    path = make_model(tmp_path / "model", "llama")
    mark = tmp_path / "ran"
    (path / "configuration_x.py").write_text(
        "import pathlib\n"
        f"pathlib.Path({str(mark)!r}).touch()\n"
        "from transformers import LlamaConfig\n"
        "class XConfig(LlamaConfig):\n    model_type = 'x-of-a-test'\n"
    )
    config = json.loads((path / "config.json").read_text())
    config |= {"model_type": "x-of-a-test", "auto_map": {"AutoConfig": "configuration_x.XConfig"}}
    (path / "config.json").write_text(json.dumps(config))
    spec = ModelSpec(path=str(path), dtype="float32")
    for load in (load_config, lambda spec: load_model(spec, Loading("float32"))):
        with pytest.raises(LauncherError):
            load(spec)
        assert not mark.exists()
    load_config(spec.model_copy(update={"trust_remote_code": True}))
    assert mark.exists()


@pytest.mark.parametrize(
    "key", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"]
)
def test_a_config_can_not_name_a_kernel_of_the_hub(tmp_path: Path, key: str) -> None:
    """transformers fetches an attention that is named org/repository, and runs it."""
    path = make_model(tmp_path / "model", "llama")
    config = json.loads((path / "config.json").read_text()) | {key: "evil/kernel:attend"}
    (path / "config.json").write_text(json.dumps(config))
    model = load_model(ModelSpec(path=str(path), dtype="float32"), Loading("float32"))
    assert model.config._attn_implementation == "sdpa"
