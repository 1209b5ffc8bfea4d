"""Whole runs here, through the command line, with real ranks under a real `accelerate launch`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from adder import adder_path, is_right, prompt_rows
from hub_server import Model, serve
from jobs import launcher, read_rows, texts, write_job


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two replicas that went undisturbed."""
    folder = tmp_path_factory.mktemp("finished")
    spec = write_job(folder, 60, parallel={"strategy": "sequential", "replicas": 2})
    launcher("run", spec, "--run-dir", folder / "run")
    return folder / "run"


def test_generations_are_right_and_in_input_order(finished: Path) -> None:
    rows = read_rows(finished / "outputs.jsonl")
    assert [row["id"] for row in rows] == [row["id"] for row in prompt_rows(60)]
    assert [row["index"] for row in rows] == list(range(60))
    assert sum(is_right(row) for row in rows) >= 59
    assert read_rows(finished / "errors.jsonl") == []
    assert {row["finish_reason"] for row in rows} == {"stop"}


def test_the_summary_measures_what_happened(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    rows = read_rows(finished / "outputs.jsonl")
    assert summary["rows"] == {"total": 60, "ok": 60, "failed": 0}
    assert summary["tokens"]["completion"] == sum(row["completion_tokens"] for row in rows)
    assert summary["tokens"]["prompt"] == sum(row["prompt_tokens"] for row in rows)
    assert summary["world_size"] == 2
    assert summary["attempts"] == 1
    rate = summary["tokens"]["completion"] / summary["generate_s"]
    assert summary["tokens_per_s"] == pytest.approx(rate)
    assert [stage["replica"] for stage in summary["stages"]] == [0, 1]
    for stage in summary["stages"]:
        parts = ("busy", "transfer", "weights", "bubble", "host_gap", "no_work")
        assert sum(stage[part] for part in parts) == pytest.approx(1.0)
        assert stage["weights_bytes"] > 100_000
        assert stage["peak_memory_bytes"] > stage["weights_bytes"]
        assert stage["load_s"] > 0
        assert stage["weights_bytes"] == stage["predicted"]["weights_bytes"]
        assert 0 < stage["kv_bytes"] <= stage["predicted"]["kv_bytes"]
    off = {pair["figure"]: pair["difference"] for pair in summary["compared"] if pair["place"]}
    assert off["weights_bytes"] == 0


def test_verify_passes_and_notices_an_edit(finished: Path) -> None:
    assert json.loads(launcher("verify", finished, "--json").stdout)["ok"]
    outputs = finished / "outputs.jsonl"
    before = outputs.read_bytes()
    outputs.write_bytes(
        before.replace(b'"index":7,', b'"index":8,').replace(b'"index": 7,', b'"index": 8,')
    )
    try:
        assert outputs.read_bytes() != before
        assert not json.loads(launcher("verify", finished, "--json", code=1).stdout)["ok"]
    finally:
        outputs.write_bytes(before)


def test_status_logs_and_resume_of_a_complete_run(finished: Path) -> None:
    status = json.loads(launcher("status", finished, "--json").stdout)
    assert (status["state"], status["rows"]["done"]) == ("complete", 60)
    lines = json.loads(launcher("logs", finished, "--rank", "1", "--json").stdout)
    assert any("joined 2 ranks" in line["line"] for line in lines)
    assert not any("rank-0000" in line["who"] for line in lines)
    again = json.loads(launcher("resume", finished, "--json").stdout)
    assert again["attempts"] == 1


def test_results_that_were_removed_are_gathered_again(finished: Path) -> None:
    outputs, summary = finished / "outputs.jsonl", finished / "summary.json"
    before, figures = outputs.read_bytes(), json.loads(summary.read_text())
    outputs.unlink()
    summary.unlink()
    launcher("resume", finished)
    assert outputs.read_bytes() == before
    assert json.loads(summary.read_text())["tokens"] == figures["tokens"]
    assert json.loads(launcher("verify", finished, "--json").stdout)["ok"]


def test_bad_rows_fail_alone(tmp_path: Path) -> None:
    spec = write_job(tmp_path, 3)
    good = (tmp_path / "prompts.jsonl").read_bytes()
    bad = b'{"id": "no prompt"}\nnot json\n{"id": "long", "prompt": "' + b"1+" * 5000 + b'"}\n'
    (tmp_path / "prompts.jsonl").write_bytes(bad + good)
    launcher("run", spec, "--run-dir", tmp_path / "run", code=1)
    errors = read_rows(tmp_path / "run" / "errors.jsonl")
    assert [(e["index"], e["code"]) for e in errors] == [
        (0, "no_prompt"),
        (1, "not_json"),
        (2, "too_long"),
    ]
    assert len(texts(tmp_path / "run")) == 3


def test_batching_does_not_change_texts(finished: Path, tmp_path: Path) -> None:
    spec = write_job(tmp_path, 60, batch={"slots": 1})
    launcher("run", spec, "--run-dir", tmp_path / "run", "batch.prefill_chunk=3")
    assert texts(tmp_path / "run") == texts(finished)


def test_layers_on_disk_give_the_same_texts(finished: Path, tmp_path: Path) -> None:
    spec = write_job(tmp_path, 10)
    memory = 'parallel.options={"max_memory": {"cpu": "600KiB"}}'
    plan = json.loads(launcher("plan", spec, memory, "--json").stdout)
    assert {"cpu", "disk"} <= {str(d) for d in plan["placements"][0]["device_map"].values()}
    launcher("run", spec, memory, "--run-dir", tmp_path / "run")
    want = texts(finished)
    assert texts(tmp_path / "run") == {name: want[name] for name in texts(tmp_path / "run")}
    for stage in json.loads((tmp_path / "run" / "summary.json").read_text())["stages"]:
        assert stage["weights"] > 0
        assert stage["busy"] > 0


def test_a_checkpoint_that_lacks_a_layer_is_refused_before_a_run_exists(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = tmp_path / "model"
    model.mkdir()
    for path in adder_path().iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    tensors = load_file(model / "model.safetensors")
    kept = {name: t for name, t in tensors.items() if ".layers.2." not in name}
    save_file(kept, model / "model.safetensors", metadata={"format": "pt"})
    spec = write_job(tmp_path, 3, model={"path": "model"})
    refused = launcher("run", spec, "--run-dir", tmp_path / "run", code=3)
    assert "layers.2" in refused.stderr
    assert str(model) in refused.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_directory_that_exists_is_left_alone(tmp_path: Path) -> None:
    spec = write_job(tmp_path, 3)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("keep")
    refused = launcher("run", spec, "--run-dir", tmp_path / "run", code=2)
    assert "is not empty, and is no run" in refused.stderr
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine"]


def test_errors_are_json_with_json(tmp_path: Path) -> None:
    spec = write_job(tmp_path, 3)
    refused = launcher("run", spec, "paralel.strategy=x", "--json", code=2)
    error = json.loads(refused.stdout)
    assert error["exit_code"] == 2
    assert "parallel" in error["what"]
    assert "Traceback" not in refused.stderr


def test_a_hub_model_is_fetched_before_and_loaded_offline(tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in adder_path().iterdir()}
    spec = write_job(tmp_path, 5, model={"path": "org/adder", "dtype": "float32"})
    with serve() as hub:
        hub.models["org/adder"] = Model(files)
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
        launcher("run", spec, "--run-dir", tmp_path / "run", env=env)
    assert len(texts(tmp_path / "run")) == 5
    job = (tmp_path / "run" / "job.yaml").read_text()
    assert str(tmp_path / "hf") in job
    # The copy is enough when the hub is gone.
    launcher("plan", spec, env=env)
    missing = launcher("submit", spec, "model.path=org/other", code=3, env=env)
    assert "org/other" in missing.stderr


def test_neither_accelerates_config_nor_the_working_directory_nor_a_slurm_job_has_a_say(
    tmp_path: Path,
) -> None:
    config = tmp_path / "hf" / "accelerate" / "default_config.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: DEEPSPEED\ngpu_ids: '7'\n"
    )
    (tmp_path / "tokenizers.py").write_text(
        "raise SystemExit('imported from the working directory')"
    )
    spec = write_job(tmp_path, 5)
    env = {"HF_HOME": str(tmp_path / "hf"), "ACCELERATE_USE_FSDP": "true"}
    env |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "4", "SLURM_NODEID": "3"}
    launcher("run", spec, "--run-dir", tmp_path / "run", env=env, cwd=tmp_path)
    assert len(texts(tmp_path / "run")) == 5
