"""Hub models against a hub on this machine: fetched, cached, refused."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub, Model, serve
from huggingface_hub import constants

from launcher.errors import PreflightError, WeightsError
from launcher.hub.errors import HubUnreachable
from launcher.hub.resolve import remote_metadata, resolve_model
from launcher.job.spec import JobSpec, ModelSpec

TOKEN = "hf_" + "Zz9Yy8Xx7Ww6Vv5Uu4Tt3"
HEADER = {
    "__metadata__": {"format": "pt"},
    "model.norm.weight": {"dtype": "BF16", "shape": [8], "data_offsets": [0, 16]},
}


def shard(header: dict[str, Any], size: int = 16) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


def small(**more: bytes) -> dict[str, bytes]:
    return {
        "config.json": b'{"model_type": "llama"}',
        "tokenizer.json": b"{}",
        "chat_template.jinja": b"{{ messages }}",
        "README.md": b"# model",
        "modeling_x.py": b"print('code')",
        "original/params.json": b"{}",
        "pytorch_model.bin": b"a pickle",
    } | more


WHOLE = small(**{"model.safetensors": shard(HEADER), "consolidated.safetensors": b"again"})
SHARDS = small(
    **{
        "model.safetensors.index.json": json.dumps(
            {"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}
        ).encode(),
        "part-1.safetensors": shard({"a": HEADER["model.norm.weight"]}),
        "part-2.safetensors": shard({"b": HEADER["model.norm.weight"]}),
    }
)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve() as server:
        use(server.url, tmp_path, monkeypatch)
        server.models = {"org/whole": Model(WHOLE), "org/shards": Model(SHARDS)}
        yield server


def use(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT and HF_HOME do where huggingface_hub is not imported yet."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the network away: nobody listens on port 1."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    template = "http://127.0.0.1:1/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def refused(model: ModelSpec, fetch: bool = True) -> str:
    with pytest.raises(PreflightError) as caught:
        resolve_model(model, fetch=fetch)
    assert TOKEN not in str(caught.value) and TOKEN not in repr(caught.value.__cause__)
    return str(caught.value)


def test_a_directory_stays_itself(tmp_path: Path) -> None:
    found = resolve_model(ModelSpec(path=str(tmp_path)))
    assert (found.path, found.commit, found.source) == (tmp_path, None, "directory")


@pytest.mark.parametrize("path", ["./none", "/no/such/model", "a/b/c", "a b", "../x", "org/-x"])
def test_neither_a_directory_nor_an_id(path: str) -> None:
    assert "there is no directory" in refused(ModelSpec(path=path))


def test_a_model_is_fetched_with_progress_and_without_what_is_not_loaded(hub: Hub) -> None:
    lines: list[str] = []
    found = resolve_model(ModelSpec(path="org/whole"), progress=lines.append)
    assert found.path is not None and (found.commit, found.source) == ("c" * 40, "hub")
    assert sorted(file.name for file in found.path.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert (found.path / "model.safetensors").read_bytes() == WHOLE["model.safetensors"]
    assert lines and all(line.startswith("fetching org/whole: ") for line in lines)


def test_code_is_fetched_where_the_spec_trusts_it(hub: Hub) -> None:
    found = resolve_model(ModelSpec(path="org/whole", revision="c" * 40, trust_remote_code=True))
    assert found.path is not None and (found.path / "modeling_x.py").is_file()


def test_the_shards_are_those_of_the_index(hub: Hub) -> None:
    found = resolve_model(ModelSpec(path="org/shards"))
    assert found.path is not None
    assert {file.name for file in found.path.glob("*.safetensors")} == {
        "part-1.safetensors",
        "part-2.safetensors",
    }
    assert "pytorch_model.bin" not in hub.fetched()


def test_offline_the_cached_copy_is_used(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = resolve_model(ModelSpec(path="org/shards"))
    cut(monkeypatch)
    found = resolve_model(ModelSpec(path="org/shards"))
    assert (found.path, found.commit, found.source) == (fetched.path, "c" * 40, "cache")
    assert found.note is not None and "can't be reached" in found.note


def test_a_commit_in_the_cache_needs_no_network(hub: Hub) -> None:
    resolve_model(ModelSpec(path="org/whole"))
    hub.requests.clear()
    assert resolve_model(ModelSpec(path="org/whole", revision="c" * 40)).source == "cache"
    assert hub.requests == []


def test_half_a_copy_is_none(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = resolve_model(ModelSpec(path="org/shards"))
    assert fetched.path is not None
    (fetched.path / "part-2.safetensors").unlink()
    cut(monkeypatch)
    said = refused(ModelSpec(path="org/shards"))
    assert "no complete copy of it here" in said and "hf download org/shards" in said


def test_without_network_and_copy(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(monkeypatch)
    with pytest.raises(HubUnreachable, match="can't be reached for org/whole"):
        resolve_model(ModelSpec(path="org/whole"))
    found = resolve_model(ModelSpec(path="org/whole"), fetch=False)
    assert (found.path, found.commit) == (None, None)
    assert found.note is not None and "can't be reached" in found.note


def test_offline_mode_and_a_full_disk_are_named(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    said = refused(ModelSpec(path="org/whole"))
    assert "org/whole can't be stored: NotADirectoryError" in said and "HF_HOME" in said
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "offline mode is enabled" in refused(ModelSpec(path="org/whole"))


def test_a_plan_fetches_nothing(hub: Hub) -> None:
    found = resolve_model(ModelSpec(path="org/whole"), fetch=False)
    assert (found.path, found.commit, found.source) == (None, "c" * 40, "hub")
    assert hub.fetched() == set()
    fetched = resolve_model(ModelSpec(path="org/whole"))
    assert resolve_model(ModelSpec(path="org/whole"), fetch=False).path == fetched.path


def test_gated_missing_and_refused(hub: Hub) -> None:
    hub.models["org/gated"] = Model(SHARDS, gated=True)
    said = refused(ModelSpec(path="org/gated"))
    assert f"org/gated is gated\n  next: accept its terms at {hub.url}/org/gated" in said
    assert "hf auth login" in said and "HF_TOKEN" in said
    hub.models["org/gated"] = Model(WHOLE, gated=True)
    assert "org/gated is gated" in refused(ModelSpec(path="org/gated"))
    for fetch in (True, False):
        said = refused(ModelSpec(path="org/none"), fetch)
        assert "there is no model org/none on the hub, or it is private" in said
        said = refused(ModelSpec(path="org/whole", revision="v9"), fetch)
        assert "org/whole has no revision 'v9'" in said
    assert "the hub refuses the token" in refused(ModelSpec(path="org/bad-token"))


def test_pickled_weights_are_refused(hub: Hub) -> None:
    hub.models["org/pickled"] = Model(small())
    said = refused(ModelSpec(path="org/pickled"))
    assert "org/pickled has no model.safetensors, only pickled weights" in said
    assert hub.fetched() == set()


@pytest.mark.parametrize(
    ("index", "said"),
    [
        (b'{"weight_map": {"a": "../../etc/hostname"}}', "its weight_map does not name files"),
        (b'{"weight_map": {"a": "gone.safetensors"}}', "lacks 'gone.safetensors'"),
        (b'{"weight_map": {"a": ["b"]}}', "its weight_map does not name files"),
        (b'{"weight_map": 3}', "its weight_map does not name files"),
        (b"[]", "not a JSON object"),
        (b"[" * 10_000, "malformed"),
    ],
)
def test_an_index_that_lies(hub: Hub, index: bytes, said: str) -> None:
    hub.models["org/liar"] = Model(small(**{"model.safetensors.index.json": index}))
    assert said in refused(ModelSpec(path="org/liar"))


def test_a_model_without_any_weights_has_a_config_and_no_headers(hub: Hub) -> None:
    files = {name: text for name, text in small().items() if name != "pytorch_model.bin"}
    hub.models["org/bare"] = Model(files)
    assert remote_metadata("org/bare", None) == ({"model_type": "llama"}, {})
    assert "org/bare has no model.safetensors" in refused(ModelSpec(path="org/bare"))
    hub.models["org/pickled"] = Model(small())
    with pytest.raises(PreflightError, match="only pickled weights"):
        remote_metadata("org/pickled", None)


def test_headers_are_read_without_the_weights(hub: Hub) -> None:
    weights = shard(HEADER, size=1_000_000)
    hub.models["org/whole"].files = {**WHOLE, "model.safetensors": weights}
    config, headers = remote_metadata("org/whole", "c" * 40)
    assert config == {"model_type": "llama"}
    assert headers == {"model.safetensors": HEADER}
    _, headers = remote_metadata("org/shards", None)
    assert list(headers) == ["part-1.safetensors", "part-2.safetensors"]
    assert headers["part-2.safetensors"] == {"b": HEADER["model.norm.weight"]}


def test_headers_that_are_none(hub: Hub) -> None:
    hub.models["org/whole"].files = {**WHOLE, "model.safetensors": b"version https://git-lfs"}
    with pytest.raises(WeightsError, match="a file of org/whole is broken"):
        remote_metadata("org/whole", None)
    hub.models["org/gated"] = Model(SHARDS, gated=True)
    with pytest.raises(PreflightError, match="org/gated is gated"):
        remote_metadata("org/gated", None)


def test_a_spec_takes_over_what_was_found(hub: Hub) -> None:
    spec = JobSpec.model_validate(
        {"name": "a", "model": {"path": "org/whole"}, "input": {"path": "p"}}
    )
    found = resolve_model(spec.model)
    pinned = found.in_spec(spec)
    assert (pinned.model.path, pinned.model.revision) == (str(found.path), "c" * 40)
    assert resolve_model(pinned.model).path == found.path
    left = resolve_model(spec.model.model_copy(update={"path": "/tmp"})).in_spec(spec)
    assert (left.model.path, left.model.revision) == ("/tmp", None)


def test_the_environment_names_the_hub_and_no_torch_is_loaded(hub: Hub, tmp_path: Path) -> None:
    code = """
import sys
from launcher.hub.resolve import resolve_model
from launcher.job.spec import ModelSpec
print(resolve_model(ModelSpec(path="org/whole"), progress=lambda line: None).path)
print({"torch", "transformers"} & set(sys.modules))
"""
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "other")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    path, modules = done.stdout.split("\n")[:2]
    assert path.startswith(str(tmp_path / "other")) and Path(path, "config.json").is_file()
    assert (modules, done.stderr) == ("set()", "")
