"""The slurm section, and site profiles behind it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from launcher import environ
from launcher.errors import SpecError
from launcher.job.load import dump_spec, load_resolved, load_spec
from launcher.job.site import site_folders, site_names
from launcher.job.slurm import SlurmSpec
from launcher.job.spec import JobSpec

MINIMAL = "name: demo\nmodel: {path: org/model}\ninput: {path: prompts.jsonl}\n"
PROFILE = """\
slurm:
  partition: gpu
  time: 12:00:00
  mail-type: END
  exclusive: yes
  setup: [module load cuda]
  array: 4
resources: {nodes: 2, gpus_per_node: 4}
"""
SHIPPED = Path(__file__).parents[2] / "slurm" / "sites"


@pytest.fixture
def sites() -> Path:
    folder = environ.config_home() / "sites"
    folder.mkdir(parents=True)
    (folder / "here.yaml").write_text(PROFILE)
    return folder


def load(folder: Path, slurm: str, *overrides: str) -> JobSpec:
    path = folder / "job.yaml"
    path.write_text(f"{MINIMAL}slurm: {slurm}\n")
    return load_spec(path, overrides).spec


def problems(folder: Path, slurm: str, *overrides: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        load(folder, slurm, *overrides)
    return [str(p).replace(f"{folder}/", "") for p in caught.value.problems]


def test_a_profile_fills_what_the_spec_leaves_out(tmp_path: Path, sites: Path) -> None:
    spec = load(tmp_path, "{site: here}")
    assert spec.slurm == SlurmSpec(
        partition="gpu",
        time="12:00:00",
        mail_type="END",
        exclusive=True,
        setup=["module load cuda"],
        array=4,
    )
    assert (spec.resources.nodes, spec.resources.gpus_per_node) == (2, 4)


def test_the_spec_wins_and_null_takes_a_default_away(tmp_path: Path, sites: Path) -> None:
    slurm = (
        "{site: here, partition: long, mail_type: null, exclusive: null, setup: null, array: null}"
    )
    spec = load(tmp_path, slurm, "resources.nodes=1")
    assert spec.slurm == SlurmSpec(partition="long", time="12:00:00")
    assert (spec.resources.nodes, spec.resources.gpus_per_node) == (1, 4)


def test_which_profile_is_used(tmp_path: Path, sites: Path) -> None:
    assert load(tmp_path, "{}").slurm == SlurmSpec()
    (sites / "default.yaml").write_text("slurm: {qos: mine}\n")
    assert load(tmp_path, "{}").slurm.qos == "mine"
    assert load(tmp_path, "{site: null}").slurm.qos is None
    assert load(tmp_path, "", "slurm.site=null").slurm.qos is None
    spec = load(tmp_path, "", "slurm.site=here")
    assert (spec.slurm.qos, spec.slurm.partition) == (None, "gpu")


def test_a_dumped_spec_has_the_values_and_asks_no_profile(tmp_path: Path, sites: Path) -> None:
    spec = load(tmp_path, "{site: here, partition: null}")
    path = tmp_path / "dumped.yaml"
    path.write_text(dump_spec(spec))
    (sites / "default.yaml").write_text("slurm: {qos: mine, partition: theirs}\n")
    (sites / "here.yaml").unlink()
    assert load_spec(path).spec == spec == load_resolved(path)


def test_mistakes_in_a_profile_are_told_at_their_place(tmp_path: Path, sites: Path) -> None:
    (sites / "here.yaml").write_text(
        "slurm:\n  partitoin: gpu\n  time: soon\n  site: x\nresources: 3\nname: x\n"
    )
    assert problems(tmp_path, "{site: here}") == [
        f"{sites}/here.yaml:2:3: unknown key `slurm.partitoin` (did you mean `partition`?)",
        f"{sites}/here.yaml:3:9: `slurm.time` should be hours:minutes:seconds, days-hours, or minutes, not 'soon'",
        f"{sites}/here.yaml:4:3: a site profile can't name another",
        f"{sites}/here.yaml:5:12: `resources` should be a mapping",
        f"{sites}/here.yaml:6:1: unknown key `name` in a site profile (a site profile holds `slurm` and `resources`)",
    ]
    (sites / "here.yaml").write_text("slurm: *x\n")
    assert f"{sites}/here.yaml:1:8: aliases" in problems(tmp_path, "{site: here}")[0]
    (sites / "here.yaml").write_text("slurm: {setup: [export HF_TOKEN=abcdef]}\n")
    (said,) = problems(tmp_path, "{site: here}")
    assert said.startswith(f"{sites}/here.yaml:1:33: this looks like a secret")


@pytest.mark.parametrize(
    ("slurm", "said"),
    [
        ("{site: hree}", "there is no site profile `hree` (did you mean `here`?; profiles are files in "),
        ("{site: ../job}", "`slurm.site` should be the name of a site profile"),
        ("{site: [here]}", "`slurm.site` should be the name of a site profile"),
        ("3", "`slurm` should be a mapping"),
        ("{mail-type: END, mail_type: FAIL}", "`mail_type` is given twice"),
        ("{nodes: 2}", "unknown key `slurm.nodes` (write resources.nodes)"),
        ("{ntasks-per-node: 2}", "(one task runs per node"),
        ("{acount: x}", "(did you mean `account`?)"),
        ("{mem: 64GB}", "`slurm.mem` should be a size such as 64G, not '64GB'"),
        ('{partition: "a\\n#SBATCH -o x"}', "should be one line without control characters"),
        ("{env: [A B]}", "`slurm.env.0` should be the name of a variable, not 'A B'"),
        ("{array: 1001}", "should be less than or equal to 1000"),
        ("{exclusive: maybe}", "or 'user', 'mcs' or 'topo', not 'maybe'"),
        ("{signal_delay: 1d}", "`slurm.signal_delay` should be less than or equal to 65535"),
    ],
)  # fmt: skip
def test_refused(tmp_path: Path, sites: Path, slurm: str, said: str) -> None:
    (line,) = problems(tmp_path, slurm)
    assert line.startswith("job.yaml:4:") and said in line


@pytest.mark.parametrize(
    ("time", "minutes"),
    [
        ("12:00:00", 720),
        ("02:00:00", 120),
        ("0:00:01", 1),
        ("1:01:30", 62),
        ("100:00:00", 6000),
        ("1-12", 36 * 60),
        ("2-00:30", 2 * 1440 + 30),
        ("1-0:0:1", 1441),
        ("720", 720),
        ("unlimited", None),
        ("null", None),
    ],
)
def test_times_are_sbatchs(tmp_path: Path, time: str, minutes: int | None) -> None:
    for written in {time, f'"{time}"'} - {'"null"'}:
        slurm = load(tmp_path, f"{{time: {written}}}").slurm
        assert slurm.time == (None if time == "null" else time)
        assert slurm.time_minutes == minutes


@pytest.mark.parametrize("time", ["12:00", "soon", "0", "1:60:00", "1-12:61", "-5", "1h", "", " 5"])
def test_times_that_are_none(time: str) -> None:
    with pytest.raises(ValidationError):
        SlurmSpec(time=time)


def test_minutes_and_seconds_are_not_taken_for_hours(tmp_path: Path) -> None:
    assert problems(tmp_path, "{time: 12:00}") == [
        "job.yaml:4:15: `slurm.time` is ambiguous (sbatch reads minutes:seconds): write 12:00:00 or 0:12:00, not '12:00'"
    ]


def test_what_sbatch_is_told(tmp_path: Path) -> None:
    slurm = load(
        tmp_path,
        "{partition: gpu, exclusive: no, requeue: no, oversubscribe: yes, nice: 0, cpus-per-task: 4,"
        " gpus-per-node: 'a100:4', time: 60, site: null, array: 2, setup: [a], env: [B]}",
    ).slurm
    assert slurm.sbatch_options() == {
        "partition": "gpu",
        "time": "60",
        "nice": 0,
        "oversubscribe": True,
        "no_requeue": True,
        "gpus_per_node": "a100:4",
        "cpus_per_task": 4,
    }
    assert SlurmSpec().sbatch_options() == {}


def test_setup_may_be_a_block_of_text(tmp_path: Path) -> None:
    assert load(tmp_path, "\n  setup: |\n    module load cuda\n    source env\n").slurm.setup == [
        "module load cuda",
        "source env",
    ]


@pytest.mark.parametrize("name", ["generic-a100", "exclusive-nodes", "devcluster"])
def test_the_profiles_of_the_project_are_found_and_right(tmp_path: Path, name: str) -> None:
    assert SHIPPED in site_folders() and name in site_names()
    spec = load(tmp_path, f"{{site: {name}}}")
    assert spec.slurm.partition and spec.slurm.time_minutes
    assert spec.resources.gpus_per_node != "auto"
