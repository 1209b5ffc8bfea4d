"""The spec as a user writes it: what every mistake is told as, and what every value means."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from specs import MINIMAL, load, problems, write

from launcher.errors import SpecError, UsageError
from launcher.job import nodes
from launcher.job.load import LoadedSpec, load_spec
from launcher.job.section import Section
from launcher.job.spec import JobSpec, strategy_names


def test_every_mistake_at_once_with_its_place_and_the_nearest_name(tmp_path: Path) -> None:
    text = """\
name: my job
task: genrate
model:
  dtype: bfloat6
parallel:
  stratgy: auto
  replicas: 0
strategy: pipeline
batch: {slots: many}
input: {path: a.jsonl}
generation:
  stop: [a, null]
  seed: 1
  seed: 2
limits: {step: soon}
"""
    assert problems(tmp_path, text, "limits.jion=3s", "generation.top_p=2") == [
        "job.yaml:1:7: `name` should be 1 to 64 letters (a-z), digits, dots, dashes and underscores, not 'my job'",
        "job.yaml:2:7: `task` should be 'generate', 'score' or 'script', not 'genrate' (did you mean `generate`?)",
        "job.yaml:3:1: `model.path` is missing",
        "job.yaml:4:10: `model.dtype` should be 'auto', 'float32', 'bfloat16' or 'float16', not 'bfloat6' (did you mean `bfloat16`?)",
        "job.yaml:6:3: unknown key `parallel.stratgy` (did you mean `strategy`?)",
        "job.yaml:7:13: `parallel.replicas` should be greater than or equal to 1, not '0'",
        "job.yaml:8:1: unknown key `strategy` (`strategy` belongs to `parallel`)",
        "job.yaml:9:16: `batch.slots` should be a valid integer or 'auto', not 'many'",
        "job.yaml:12:13: `generation.stop.1` should be a valid string",
        "job.yaml:14:3: `seed` is given twice; first at job.yaml:13:3",
        "job.yaml:15:16: `limits.step` should be a number with s, m, h or d behind it, such as 300s, not 'soon'",
        "override generation.top_p=2: `generation.top_p` should be less than or equal to 1, not '2'",
        "override limits.jion=3s: unknown key `limits.jion` (did you mean `join`?)",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: *x\n", "job.yaml:4:4: aliases (*x) are not allowed"),
        ("a: &x 1\n", "job.yaml:4:4: anchors (&x) are not allowed"),
        ("a: !!python/name:os.system x\n", "job.yaml:4:4: tags (tag:yaml.org,2002:python/"),
        ("---\na: b\n", "job.yaml:4:1: a second document begins here"),
        ("a: \x00\n", "job.yaml:4:4: the character U+0000 is not allowed"),
        ("a: \x1b\n", "job.yaml:4:4: the character U+001B is not allowed"),
        ("batch: " + "[" * 60, "job.yaml:4:58: nested over 50 levels deep"),
        ("batch: " + "[" * 200_000, "nested over 50 levels deep"),
        ("generation: {seed: " + "9" * 5000 + "}\n", "job.yaml:4:20: a number of 5000 characters"),
        ("generation: {temperature: 1e999}\n", "should be a finite number, not '1e999'"),
        ("generation: {temperature: nan}\n", "should be a finite number, not 'nan'"),
        ("generation: {<<: {seed: 1}}\n", "job.yaml:4:14: unknown key `generation.<<`"),
        ("? [a]\n: b\n", "job.yaml:4:3: a key is text"),
        ("batch:\n\tslots: 1\n", "indent with spaces, not tabs"),
        ("output: {dir: a: b}\n", "not YAML"),
        ('generation: {stop: ["\\0"]}\n', "a character that no file can hold"),
        ('generation: {stop: ["\\ud800"]}\n', "job.yaml:4:2"),
        ("parallel: {options: {n: 0777}}\n", "0777 means different numbers to different readers"),
        ("parallel: {stages: 0x10}\n", "0x10 means different numbers to different readers"),
        ("parallel: {stages: true}\n", "`parallel.stages` should be a valid integer, not 'true'"),
        ("parallel: {stages: 12:00:00}\n", "should be a valid integer, not '12:00:00'"),
        ("parallel: {stages: 2.5}\n", "`parallel.stages` should be a valid integer"),
        ("parallel: {strategy: pipline}\n", "`parallel.strategy` should be 'auto'"),
        ("batch: {}\nbatch: {}\n", "job.yaml:5:1: `batch` is given twice; first at job.yaml:4:1"),
        ("model: {path: x}\n", "`model` is given twice; first at job.yaml:2:1"),
        ("k: v\n" * 40_000, "too many mistakes, stopping here"),
        ("parallel: {options: {" + "".join(f"k{n}: 1," for n in range(21_000)) + "}}", "values"),
    ],
)
def test_refused(tmp_path: Path, text: str, said: str) -> None:
    assert said in "\n".join(problems(tmp_path, MINIMAL + text))


def test_a_bomb_is_not_expanded(tmp_path: Path) -> None:
    levels = [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 12)]
    said = problems(tmp_path, MINIMAL + "l0: &l0 [x]\n" + "\n".join(levels))
    assert len(said) < 200
    assert any("aliases (*l0) are not allowed" in line for line in said)


def test_python_without_libyaml_reads_the_same(tmp_path: Path, monkeypatch: Any) -> None:
    text = MINIMAL + "parallel: {stages: 0777}\nbatch: {slots: '4'}\n\u00e9: *x\n"
    with_libyaml = problems(tmp_path, text)
    monkeypatch.setattr(nodes, "_Loader", yaml.SafeLoader)
    assert problems(tmp_path, text) == with_libyaml


def test_files_that_are_no_spec(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        load_spec(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="directory"):
        load_spec(tmp_path)
    assert problems(tmp_path, b"a: b\n" * 250_000) == [
        "job.yaml: larger than 1 MiB (prompts belong to input.path)"
    ]
    assert "job.yaml:2:4: not UTF-8" in problems(tmp_path, b"a: b\nc: \xe9\n")[0]
    assert "a spec is a mapping" in problems(tmp_path, "- a\n")[0]
    assert [line.split(": ")[1] for line in problems(tmp_path, "")] == [
        "`name` is missing",
        "`model` is missing",
        "`input` is missing",
    ]


def test_overrides(tmp_path: Path) -> None:
    spec = load(
        tmp_path,
        "batch:\nslurm: {setup: [old], partition: gpu}\n",
        "batch.slots=8",
        "slurm.setup=[\"module load cuda\", 'b: c']",
        "slurm.partition=null",
        "slurm.comment=a: b #c",
        "parallel.options.memory=4GiB",
        "parallel.options.device_map={model.layers.0: 0, lm_head: cpu}",
        "input.path=*.jsonl",
    )
    assert spec.batch.slots == 8
    assert spec.slurm.setup == ["module load cuda", "b: c"]
    assert (spec.slurm.partition, spec.slurm.comment) == (None, "a: b #c")
    assert spec.parallel.options == {
        "memory": "4GiB",
        "device_map": {"model.layers.0": 0, "lm_head": "cpu"},
    }
    assert spec.input.path == str(tmp_path / "*.jsonl")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("batch", "not of the form key.key=value"),
        ("model.revision=../../refs", "`model.revision` should be a branch, tag or commit"),
        ("model.path=", "`model.path` is missing"),
        ("name=..", "`name` should be 1 to 64 letters"),
        ("=3", "not of the form key.key=value"),
        ("batch..slots=3", "not of the form key.key=value"),
        ("name.x=3", "`name` is not a mapping"),
        ("batch.slots=[1", "not YAML"),
        ("slurm.setup=[&a x]", "anchors (&a) are not allowed"),
        ("batch.slots=[1]", "`batch.slots` should be a valid integer or 'auto'"),
        ("batch={slots: 1, slots: 2}", "`slots` is given twice"),
    ],
)
def test_overrides_are_checked_alike(tmp_path: Path, override: str, said: str) -> None:
    (line,) = problems(tmp_path, MINIMAL, override)
    assert line.startswith(f"override {override}: {said}")


def test_an_override_given_twice(tmp_path: Path) -> None:
    assert problems(tmp_path, MINIMAL, "batch.slots=1", "batch.slots=2") == [
        "override batch.slots=2: `batch.slots` is given twice"
    ]


TOKEN = "hf_" + "aB3dE6gH9jK2mN5pQ8sT"


@pytest.mark.parametrize(
    "line",
    [
        f"slurm: {{setup: ['export HF_TOKEN={TOKEN}']}}",
        f"# {TOKEN}",
        f"{TOKEN}: 1",
        "slurm: {comment: sk-proj-" + "a1" * 12 + "}",
        "slurm: {setup: [export WANDB_API_KEY=0123456789]}",
        "slurm: {setup: ['git clone https://me:s3cret@host/repo']}",
    ],
)
def test_secrets_are_refused_and_not_repeated(tmp_path: Path, line: str) -> None:
    said = "\n".join(problems(tmp_path, MINIMAL + line + "\n"))
    assert "job.yaml:4:" in said and "looks like a secret" in said
    for secret in (TOKEN, "a1a1", "0123456789", "s3cret"):
        assert secret not in said


def test_a_secret_in_an_override(tmp_path: Path) -> None:
    said = "\n".join(problems(tmp_path, MINIMAL, f"slurm.partitoin={TOKEN}"))
    assert "looks like a secret" in said and "did you mean `partition`?" in said
    assert TOKEN not in said


def test_what_is_no_secret(tmp_path: Path) -> None:
    lines = [
        "export HF_TOKEN=$(cat ~/.token)",
        "export A_TOKEN=$B",
        "export TOKENIZERS_PARALLELISM=false",
    ]
    text = f"slurm: {{setup: {json.dumps(lines)}, container_image: docker://nvcr.io/x:24}}\n"
    assert load(tmp_path, text).slurm.setup == lines


class Options(Section):
    device_map: str = "auto"
    max_memory: dict[str, str] | None = None


def test_options_of_a_strategy_have_places_too(tmp_path: Path) -> None:
    def check(options: str) -> tuple[LoadedSpec, Options]:
        text = f"{MINIMAL}parallel:\n  options:\n    {options}\n"
        loaded = load_spec(write(tmp_path, text))
        value = loaded.spec.parallel.options
        return loaded, loaded.check_section("parallel.options", Options, value)

    loaded, options = check("device_map: balanced")
    assert options == Options(device_map="balanced")
    assert loaded.where("parallel.options.device_map") == f"{tmp_path}/job.yaml:6:17"
    assert loaded.where("model.revision") == f"{tmp_path}/job.yaml:2:8"
    for text, said in [
        (
            "devcie_map: auto",
            "6:5: unknown key `parallel.options.devcie_map` (did you mean `device_map`?)",
        ),
        (
            "device_map: 3",
            "6:17: `parallel.options.device_map` should be a valid string, not '3' (quote it)",
        ),
        (
            "max_memory: {0: 1.5}",
            "6:21: `parallel.options.max_memory.0` should be a valid string, not '1.5' (quote it)",
        ),
    ]:
        with pytest.raises(SpecError) as caught:
            check(text)
        assert [str(p) for p in caught.value.problems] == [f"{tmp_path}/job.yaml:{said}"]


def test_strategies_are_the_files(tmp_path: Path) -> None:
    folder = Path(sys.modules["launcher.job.spec"].__file__ or "").parents[1] / "strategies"
    names = {file.stem for file in folder.glob("[!_]*.py")}
    assert set(strategy_names()) == names | {"auto"}
    for name in strategy_names():
        assert load(tmp_path, f"parallel: {{strategy: {name}}}\n").parallel.strategy == name
    with pytest.raises(ValidationError, match="should be 'auto'"):
        JobSpec.model_validate(
            {
                "name": "a",
                "model": {"path": "m"},
                "input": {"path": "p"},
                "parallel": {"strategy": "x"},
            }
        )
