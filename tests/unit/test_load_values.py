"""What values of a spec mean, where its paths lead, and that a dumped spec says the same."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from specs import MINIMAL, load, write

from launcher.job.load import dump_spec, json_schema, load_resolved, load_spec
from launcher.job.spec import JobSpec, strategy_names


def test_values_mean_what_a_person_means(tmp_path: Path) -> None:
    spec = load(
        tmp_path,
        """\
generation: {temperature: 1e-3, top_p: "0.5", seed: '7', max_new_tokens: 1_000, stop: [no, 1e-3, 0777]}
batch: {slots: "4", groups: 'auto', max_length: 2e3}
limits: {join: 5m, step: 90, stall: "1.5h", drain: 10s}
slurm: {time: 02:00:00, account: 0777, comment: no, mem: 64000, gpus_per_node: a100:4, exclusive: on}
resources: {gpus_per_node: 4}
parallel:
output: {dir: 2024-01-01}
""",
    )
    assert (spec.generation.temperature, spec.generation.top_p) == (0.001, 0.5)
    assert (spec.generation.seed, spec.generation.max_new_tokens) == (7, 1000)
    assert spec.generation.stop == ["no", "1e-3", "0777"]
    assert (spec.batch.slots, spec.batch.groups, spec.batch.max_length) == (4, "auto", 2000)
    limits = spec.limits
    assert (limits.join, limits.step, limits.stall, limits.drain) == (300, 90, 5400, 10)
    assert (spec.slurm.time, spec.slurm.account, spec.slurm.comment) == ("02:00:00", "0777", "no")
    assert (spec.slurm.mem, spec.slurm.gpus_per_node) == ("64000", "a100:4")
    assert (spec.slurm.exclusive, spec.output.dir) == (True, "2024-01-01")


@pytest.mark.parametrize("word", ["no", "No", "off", "false", "'no'", '"FALSE"'])
def test_flags(tmp_path: Path, word: str) -> None:
    text = MINIMAL.replace("org/model", f"org/model, trust_remote_code: {word}")
    assert load_spec(write(tmp_path, text)).spec.model.trust_remote_code is False


def test_options_without_a_type_follow_yaml_12(tmp_path: Path) -> None:
    options = (
        "{a: 1e-3, b: no, c: 12:00:00, d: true, e: null, f: [1, '1', 1.5], 7: {x: -0.5}, g: 4GiB}"
    )
    assert load(tmp_path, f"parallel: {{options: {options}}}\n").parallel.options == {
        "a": 0.001,
        "b": "no",
        "c": "12:00:00",
        "d": True,
        "e": None,
        "f": [1, "1", 1.5],
        "7": {"x": -0.5},
        "g": "4GiB",
    }


def test_paths_start_at_the_folder_of_the_spec(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "a[b]").mkdir()
    monkeypatch.chdir("/")
    more = "parallel: {options: {offload_dir: spill}}\n"
    text = MINIMAL.replace("org/model", "tiny").replace("prompts.jsonl", "[a.jsonl, /b/*.jsonl]")
    spec = load_spec(write(tmp_path, text + more), ["input.template=chat.jinja"]).spec
    assert spec.model.path == str(tmp_path / "tiny")
    assert spec.input.path == [str(tmp_path / "a.jsonl"), "/b/*.jsonl"]
    assert spec.input.template == str(tmp_path / "chat.jinja")
    assert spec.parallel.options == {"offload_dir": str(tmp_path / "spill")}
    assert spec.output.dir == "runs"
    spec = load_spec(write(tmp_path / "a[b]", MINIMAL), ["input.path=*.jsonl"]).spec
    assert (spec.model.path, spec.input.template) == ("org/model", "auto")
    assert spec.input.path == str(tmp_path / "a[[]b]" / "*.jsonl")
    assert load(tmp_path, "", "model.path=../x").model.path == str(tmp_path.parent / "x")


NASTY = [
    *("no", "null", "~", "1e-3", "0777", "0x1F", "12:00:00", ".nan", "2024-01-01", "1_000", "=", "<<"),
    *(" a", "a ", "a: b", "a #b", "# c", "- d", "*e", "&f", "!g", "%h", "@i", "`j", "{k", "[l", "'", '"'),
    *("\n", "\r\n", "\t", "\x85", "\u2028", "\ufeff", "\U0001f600", "\\n", "a\nb\n\n c", "\x7f", "e" * 300),
]  # fmt: skip


def nasty_spec(rng: random.Random, folder: Path) -> JobSpec:
    def text() -> str:
        return "".join(rng.choice([*NASTY, "x", " "]) for _ in range(rng.randint(1, 4)))

    def anything(depth: int) -> Any:
        if depth and rng.random() < 0.5:
            keys = [text() for _ in range(rng.randint(0, 4))]
            return (
                {key: anything(depth - 1) for key in keys}
                if rng.random() < 0.5
                else [anything(depth - 1) for _ in keys]
            )
        return rng.choice(
            [
                text(),
                rng.randint(-(10**30), 10**30),
                rng.uniform(-1, 1) * 10.0 ** rng.randint(-30, 30),
                True,
                None,
            ]
        )

    return JobSpec.model_validate(
        {
            "name": rng.choice(["no", "0777", "1e3", "a.b-c_d", "12"]),
            "model": {"path": "org/model", "revision": rng.choice([None, "0777", "refs/pr/1"])},
            "parallel": {"options": {text(): anything(4) for _ in range(5)}},
            "batch": {"slots": rng.choice(["auto", 3])},
            "input": {"path": [str(folder / "a b"), str(folder / "no: #")], "template": "none"},
            "generation": {"stop": [text() for _ in range(5)], "temperature": rng.random()},
            "output": {"dir": text()},
            "slurm": {"setup": [text()], "time": "12:00:00", "account": "0777", "exclusive": True, "array": 3},
            "limits": {"join": rng.random() * 1000},
        }
    )  # fmt: skip


def test_what_is_dumped_loads_to_an_equal_spec(tmp_path: Path) -> None:
    rng = random.Random(0)
    for _ in range(60):
        spec = nasty_spec(rng, tmp_path)
        path = write(tmp_path, dump_spec(spec))
        assert load_resolved(path) == spec
        assert load_spec(path).spec == spec


def test_a_dumped_spec_is_resolved_and_no_site_changes_it(tmp_path: Path) -> None:
    spec = load(tmp_path, "slurm: {time: 1-0}\nparallel: {options: {b: 0.1}}\n")
    text = dump_spec(spec)
    assert 'time: "1-0"\n' in text and "  site: null\n" in text and "partition" not in text
    assert load_resolved(write(tmp_path, text)) == spec


def test_the_schema_has_every_field_and_both_spellings() -> None:
    schema = json_schema()
    assert set(schema["properties"]) == set(JobSpec.model_fields)
    assert schema["additionalProperties"] is False
    slurm = schema["$defs"]["SlurmSpec"]["properties"]
    assert slurm["mail-type"] == slurm["mail_type"]
    assert schema["$defs"]["ParallelSpec"]["properties"]["strategy"]["enum"] == strategy_names()
    limit = schema["$defs"]["LimitsSpec"]["properties"]["step"]["anyOf"]
    assert [kind["type"] for kind in limit] == ["number", "string"]  # 90, or 90s
    json.dumps(schema)
