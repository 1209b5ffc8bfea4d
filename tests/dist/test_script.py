"""`task: script` here: the examples with real ranks, stopping and going on, and scripts that fail."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from adder import adder_path
from jobs import PATIENCE_S, command, launcher, wait_for

CONFIGS = Path(__file__).parents[2] / "configs"
ENV = {"OMP_NUM_THREADS": "1"}


def write(folder: Path, text: str, ranks: int = 2, **sections: Any) -> Path:
    (folder / "script.py").write_text(text)
    spec = {
        "name": "script",
        "task": "script",
        "script": {"path": "script.py", "processes_per_node": ranks},
        "resources": {"device": "cpu"},
        "limits": {"join": "240s", "drain": "120s"},
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(spec | sections, sort_keys=False))
    return path


def state(run: Path) -> dict[str, Any]:
    return dict(json.loads(launcher("status", run, "--json").stdout))


def log(run: Path, rank: int = 0) -> str:
    return "".join(p.read_text() for p in sorted(run.glob(f"logs/*-rank-{rank:04d}.log")))


def test_fsdp_example_stops_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    endless = ["script.args=[--steps, 1000000000, --save-every, 5]"]
    going = subprocess.Popen(
        command("run", CONFIGS / "train-fsdp.yaml", *endless, "--run-dir", run),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for((run / "files" / "newest").exists)
    wait_for(lambda: state(run)["ranks"][0]["steps"] >= 5)
    assert state(run)["state"] == "running"
    assert "a script, step" in launcher("status", run).stdout
    launcher("cancel", run)
    said, _ = going.communicate(timeout=PATIENCE_S)
    assert going.returncode == 75, said
    assert state(run)["state"] == "stopped"
    done = int((run / "files" / "newest").read_text())
    job = (run / "job.yaml").read_text()
    (run / "job.yaml").write_text(job.replace('"1000000000"', f'"{done + 3}"'))
    told = launcher("resume", run)
    assert "2 ranks on cpu" in told.stdout
    assert str(run / "files") in told.stdout
    assert f"from step {done}: 50% of the weights on each rank" in log(run)
    assert int((run / "files" / "newest").read_text()) == done + 3
    assert state(run)["state"] == "complete"
    assert json.loads(launcher("verify", run, "--json").stdout)["ok"]
    summary = json.loads(launcher("resume", run, "--json").stdout)
    assert (summary["strategy"], summary["attempts"], summary["stages"]) == ("script", 2, [])
    assert "script" in Path(launcher("report", run).stdout.split("\n")[0]).read_text()
    assert "train-fsdp" in (run / "report.html").read_text()


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft (extra: lora)")
def test_lora_example_teaches_the_model_one_more(tmp_path: Path) -> None:
    run = tmp_path / "run"
    spec = CONFIGS / "finetune-lora.yaml"
    args = f"script.args=[--model, {adder_path()}, --steps, 40, --save-every, 40]"
    launcher("run", spec, args, "--run-dir", run, env=ENV)
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(adder_path())
    base = AutoModelForCausalLM.from_pretrained(adder_path(), dtype=torch.float32)
    tuned = PeftModel.from_pretrained(base, run / "files" / "adapter")
    right = 0
    for a, b in ((123, 321), (200, 315), (421, 137), (250, 249)):
        prompt = torch.tensor([tokenizer(f"{a}+{b}=")["input_ids"]])
        text = tokenizer.decode(tuned.generate(input_ids=prompt, max_new_tokens=4)[0])
        right += f"={a + b + 1}" in text.replace(" ", "")
    assert right >= 3


def test_what_a_script_is_told(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("word = 'imported'\n")
    spec = write(
        tmp_path,
        "import json, os, sys, pathlib, beside\n"
        "told = {k: v for k, v in os.environ.items() if k.startswith(('LAUNCHER', 'RANK', 'ACC'))}\n"
        "told |= {'argv': sys.argv[1:], 'cwd': os.getcwd(), 'beside': beside.word}\n"
        "pathlib.Path(told['LAUNCHER_FILES'], 'told.json').write_text(json.dumps(told))\n",
        ranks=1,
    )
    args = json.dumps(["$HOME; touch x", "--lr", "1e-3", ""])
    run = tmp_path / "run"
    launcher("run", spec, f"script.args={args}", "--run-dir", run, env={"ACCELERATE_USE_FSDP": "1"})
    told = json.loads((run / "files" / "told.json").read_text())
    assert told["argv"] == ["$HOME; touch x", "--lr", "1e-3", ""]
    assert told["cwd"] == str(tmp_path)
    assert told["beside"] == "imported"
    assert told["LAUNCHER_RUN"] == str(run)
    assert (told["LAUNCHER_ATTEMPT"], told["LAUNCHER_RESTARTS"]) == ("w0000-a0001", "0")
    assert told["ACCELERATE_USE_CPU"] == "true"
    assert "ACCELERATE_USE_FSDP" not in told
    assert "RANK" not in told, "a world of one has no rendezvous, so nobody is to look for it"
    assert not (tmp_path / "x").exists()
    assert "a script, no rows to judge" in launcher("verify", run).stdout
    checked = launcher("plan", "--check", run).stdout
    assert "wall time" in checked and "tokens" not in checked


def test_a_rank_that_fails_is_named_with_its_last_words_and_resume_tries_again(
    tmp_path: Path,
) -> None:
    spec = write(
        tmp_path,
        "import os, sys, time\n"
        "if os.environ['LAUNCHER_RESTARTS'] == '0':\n"
        "    if os.environ['RANK'] == '1':\n"
        "        sys.exit('the data is gone')\n"
        "    time.sleep(600)\n",
    )
    run = tmp_path / "run"
    failed = launcher("run", spec, "--run-dir", run, code=75)
    assert "the script of rank 1 ended with exit code 1" in failed.stderr
    assert "the data is gone" in failed.stderr
    seen = state(run)
    assert seen["state"] == "failed"
    assert seen["failure"]["where"].startswith("rank 1 on ")
    launcher("resume", run)
    assert state(run)["state"] == "complete"


def test_a_script_that_stands_still_is_ended_if_it_told_its_steps(tmp_path: Path) -> None:
    spec = write(
        tmp_path,
        "import os, time\nopen(os.environ['LAUNCHER_PROGRESS'], 'w').write('3')\ntime.sleep(600)\n",
        ranks=1,
        limits={"step": "2s"},
    )
    failed = launcher("run", spec, "--run-dir", tmp_path / "run", code=75)
    assert "in one step for more than limits.step" in failed.stderr
