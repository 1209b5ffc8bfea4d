"""Checkpoints that lie: refused with the file named, by plan and by every loader, before anything is generated.

What one malformed header or index says is in test_checkpoint.py; this is what is left: hostile sizes, links, surplus
tensors, changes between plan and load, and headers broken at random."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from adder import adder_path
from checkpoint_edits import add_tensor, edit_index, header_of, refused, sharded, write_header
from jobs import write_job
from models import make_model
from safetensors import SafetensorError, safe_open

from launcher import prepare, strategies
from launcher.errors import WeightsError
from launcher.measure.spans import Recorder
from launcher.model.gang import Gang
from launcher.plan.headers import read_header

ALONE = Gang(0, 1, ("here",), 0.0)
ENTRY: dict[str, Any] = {"dtype": "F32", "shape": [64], "data_offsets": [0, 256]}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("good") / "model", "llama")


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    return shutil.copytree(good, tmp_path / "model")


# Headers.


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (ENTRY | {"shape": [2**62] * 10_000}, "malformed shape"),
        (ENTRY | {"shape": [0] * 65}, "malformed shape"),
        (ENTRY | {"shape": [10**4000]}, "malformed shape"),
        (ENTRY | {"data_offsets": [0, 10**4000]}, "malformed shape"),
        (ENTRY | {"shape": [-64]}, "malformed shape"),
        (ENTRY | {"data_offsets": [-256, 0]}, "malformed shape"),
        (ENTRY | {"data_offsets": [256, 0]}, "can't take -256 bytes"),
        (ENTRY | {"shape": [64.0]}, "malformed shape"),
        (ENTRY | {"dtype": "x" * 10_000}, "unknown dtype"),
        ([1, 2], "no description"),
    ],
)
def test_sizes_that_nobody_has(entry: Any, said: str, copy: Path) -> None:
    write_header(copy / "model.safetensors", {"t": entry}, bytes(256))
    message = refused(copy)
    assert said in message and "model.safetensors" in message
    assert len(message) < 1000


def test_numbers_of_5000_digits(copy: Path) -> None:
    raw = b'{"t": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 256]}}'
    (copy / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(256))
    assert "malformed JSON" in refused(copy)


def test_tensors_that_overlap(copy: Path) -> None:
    header = {"a": ENTRY, "b": ENTRY | {"data_offsets": [128, 384]}}
    write_header(copy / "model.safetensors", header, bytes(384))
    assert "tensor b starts at byte 128, not at 256" in refused(copy)


def test_a_tensor_out_of_the_file(copy: Path) -> None:
    entry = ENTRY | {"shape": [2**40], "data_offsets": [0, 2**42]}
    write_header(copy / "model.safetensors", {"a": entry}, bytes(256))
    assert "is truncated" in refused(copy)


def test_a_header_longer_than_the_formats_limit_is_not_read(copy: Path) -> None:
    with (copy / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 1 << 40))
        file.truncate((1 << 40) + 8)  # a hole: no disk holds that
    assert "its header would be 1,099,511,627,776 bytes long" in refused(copy)


def test_an_index_that_is_a_hole(tmp_path: Path) -> None:
    path = sharded(tmp_path / "model")
    os.truncate(path / "model.safetensors.index.json", 1 << 38)
    assert "bytes long" in refused(path)


def test_headers_broken_at_random_are_refused_or_right(good: Path, tmp_path: Path) -> None:
    """What is accepted is also accepted by the format's own library, and lies within the file; what is not is named.
    The seed is fixed."""
    header, data = header_of(good / "model.safetensors")
    names = list(header)[:4]
    small: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for at, name in enumerate(name for name in names if name != "__metadata__"):
        small[name] = ENTRY | {"data_offsets": [256 * at, 256 * at + 256]}
    data = bytes(256 * (len(small) - 1))
    whole = json.dumps(small).encode()
    rng, path, accepted = random.Random(20261120), tmp_path / "x.safetensors", 0
    for _ in range(1500):
        raw = _broken(whole, rng)
        length = rng.choice([len(raw), len(raw), len(raw), len(raw) + 1, rng.randrange(2**63)])
        path.write_bytes(struct.pack("<Q", length) + raw + data[: rng.choice([len(data), 300])])
        try:
            found = read_header(path)
        except WeightsError as error:
            assert error.where == str(path)
            continue
        accepted += 1
        assert max((t.end for t in found.values()), default=0) + 8 + length == path.stat().st_size
        try:
            with safe_open(path, "pt") as opened:
                assert set(opened.keys()) == set(found)
        except SafetensorError as error:  # stricter in one thing: what metadata may hold
            assert "etadata" in str(error) or "expected" in str(error), error
    assert 50 < accepted < 1400


def _broken(raw: bytes, rng: random.Random) -> bytes:
    found = bytearray(raw)
    for _ in range(rng.choice([0, 1, 1, 2, 8])):
        at = rng.randrange(len(found))
        kind = rng.randrange(3)
        if kind == 0:
            found[at] = rng.randrange(256)
        elif kind == 1:
            found[at:at] = rng.choice(
                [b"0", b"9", b"-", b'"', b"{", b"]", b",", b"\\u0000", b"1e9"]
            )
        else:
            del found[at : at + rng.randrange(1, 8)]
    return bytes(found)


# Tensors that are there and should not be.


def test_more_layers_than_the_config_counts(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text()) | {"num_hidden_layers": 3}
    (copy / "config.json").write_text(json.dumps(config))
    message = refused(copy)
    assert "would leave out: model.layers.3." in message and "counts fewer layers" in message


def test_a_bias_that_the_config_does_not_have(copy: Path) -> None:
    add_tensor(copy / "model.safetensors", "model.layers.1.self_attn.q_proj.bias", [64])
    assert "would leave out: model.layers.1.self_attn.q_proj.bias" in refused(copy)


def test_tables_of_old_checkpoints_are_no_surplus(copy: Path) -> None:
    add_tensor(copy / "model.safetensors", "model.layers.1.self_attn.rotary_emb.inv_freq", [8])
    add_tensor(copy / "model.safetensors", "v_head.summary.weight", [64])
    read = prepare.Checkpoint.read(copy)
    assert "model.layers.1.self_attn.rotary_emb.inv_freq" in read.tensors


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    path = sharded(tmp_path / "model")
    first, second = sorted(path.glob("*.safetensors"))[:2]
    name = next(name for name in header_of(first)[0] if name != "__metadata__")
    add_tensor(second, name, [64])
    message = refused(path)
    assert f"both {first.name} and {second.name} hold {name}" in message


# Links, and what is no file.


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["out", "itself", "fifo", "folder", "far"])
def test_what_is_no_file_of_the_model(copy: Path, name: str, kind: str, tmp_path: Path) -> None:
    path = copy / name
    shutil.move(path, tmp_path / name)
    if kind == "out":
        path.symlink_to(tmp_path / name)
    elif kind == "itself":
        path.symlink_to(name)
    elif kind == "fifo":
        os.mkfifo(path)  # reading it would wait for ever
    elif kind == "folder":
        path.mkdir()
    else:  # over a link inside that leads out
        (copy / "hop").symlink_to(tmp_path)
        path.symlink_to(Path("hop") / name)
    message = refused(copy)
    assert name in message
    assert ("link out of the checkpoint" in message) == (kind in ("out", "far"))


def test_a_link_to_a_neighbour_is_as_good_as_the_file(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "weights")
    (copy / "model.safetensors").symlink_to("weights")
    assert prepare.Checkpoint.read(copy).parameters


def test_a_blob_of_another_model_of_the_cache_is_outside(copy: Path, tmp_path: Path) -> None:
    other = tmp_path / "models--other" / "blobs"
    other.mkdir(parents=True)
    shutil.move(copy / "model.safetensors", other / "b")
    snapshot = tmp_path / "models--a" / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    (tmp_path / "models--a" / "blobs").mkdir()
    copy.rename(snapshot)
    (snapshot / "model.safetensors").symlink_to("../../../models--other/blobs/b")
    assert "link out of the checkpoint" in refused(snapshot)


@pytest.mark.parametrize("name", ["x" * 300, "x\n.safetensors", "\u202e.safetensors", "~/x", "-"])
def test_names_in_an_index(name: str, tmp_path: Path) -> None:
    path = sharded(tmp_path / "model")
    edit_index(path, lambda m: m | {"model.norm.weight": name})
    message = refused(path)
    assert "not in its own directory" in message or "is missing" in message


# By every strategy: when it is planned, and when it broke afterwards.


def lose_a_tensor(path: Path) -> None:
    header, data = header_of(path / "model.safetensors")
    name = next(name for name in header if ".layers.2." in name)
    write_header(path / "model.safetensors", {**header, f"{name}x": header.pop(name)}, data)


def cut_short(path: Path) -> None:
    os.truncate(path / "model.safetensors", (path / "model.safetensors").stat().st_size - 100)


def lead_out(path: Path) -> None:
    shutil.move(path / "model.safetensors", path.parent / "elsewhere")
    (path / "model.safetensors").symlink_to(path.parent / "elsewhere")


def pickle_it(path: Path) -> None:
    (path / "model.safetensors").unlink()
    (path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")


def count_fewer_layers(path: Path) -> None:
    config = json.loads((path / "config.json").read_text())
    config["num_hidden_layers"] -= 1
    (path / "config.json").write_text(json.dumps(config))


BREAKS = [lose_a_tensor, cut_short, lead_out, pickle_it, count_fewer_layers]


def job(folder: Path, model: Path, strategy: str) -> Path:
    options = {"memory": "4GiB"} if strategy == "streamed" else {}
    return write_job(
        folder,
        3,
        model={"path": str(model)},
        parallel={"strategy": strategy, "options": options},
    )


def planned(spec: Path) -> prepare.Planned:
    return prepare.plan_job(spec, [], here=True, say=lambda _: None)


@pytest.mark.parametrize("strategy", strategies.names())
@pytest.mark.parametrize("breaks", BREAKS)
def test_every_strategy_refuses(
    strategy: str, breaks: Callable[[Path], None], tmp_path: Path
) -> None:
    model = shutil.copytree(adder_path(), tmp_path / "model")
    found = planned(job(tmp_path, model, strategy))
    breaks(model)
    with pytest.raises(WeightsError) as by_plan:
        planned(job(tmp_path, model, strategy))
    recorder = Recorder(None, {})
    try:
        with pytest.raises(WeightsError) as by_rank:
            strategies.get(strategy).load(
                found.plan.placements[0], found.plan, found.spec, recorder, ALONE
            )
    finally:
        recorder.close()
    for caught in (by_plan, by_rank):
        assert str(model) in str(caught.value)
