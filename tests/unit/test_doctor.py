"""The doctor: what it makes of settings, GPUs, folders and nodes. What it says of a real cluster: tests/slurm."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from jobs import launcher

from launcher.doctor import gpus, hub, meeting, slurm, software, storage
from launcher.doctor.finding import Finding
from launcher.runtime import network

GOOD = """Configuration data as of 2026-11-20T10:00:00
AccountingStorageType   = accounting_storage/slurmdbd
GresTypes               = gpu
KillWait                = 30 sec
PreemptMode             = OFF
ProctrackType           = proctrack/cgroup
SlurmdTimeout           = 300 sec
MaxArraySize            = 1001
"""


def by_check(found: Any) -> dict[str, Finding]:
    return {finding.check: finding for finding in found}


def test_a_usual_cluster_is_fine() -> None:
    found = by_check(slurm.judge(slurm.read_settings(GOOD)))
    assert {finding.status for finding in found.values()} == {"ok"}
    assert "300 s" in found["node failure"].says
    assert "1000" in found["arrays"].says


@pytest.mark.parametrize(
    ("old", "new", "check", "status", "says"),
    [
        ("accounting_storage/slurmdbd", "(null)", "accounting", "note", "sacct"),
        ("= gpu", "= (null)", "GPUs", "warning", "no GPUs"),
        ("proctrack/cgroup", "proctrack/pgid", "process tracking", "warning", "outlive"),
        ("= OFF", "= REQUEUE", "preemption", "note", "GraceTime"),
        ("30 sec", "2 sec", "ending", "note", "2 s"),
    ],
)
def test_a_setting_that_hurts_is_told(
    old: str, new: str, check: str, status: str, says: str
) -> None:
    finding = by_check(slurm.judge(slurm.read_settings(GOOD.replace(old, new))))[check]
    assert finding.status == status
    assert says in finding.says


def test_partitions_are_told_with_their_gpus_and_limits() -> None:
    text = "gpu|up|1-00:00:00|4|gpu:a100:4(S:0-1)\ngpu|up|1-00:00:00|2|(null)\nold|down|1:00|9|(null)\n"
    found = by_check(slurm.partitions(text))
    assert found.keys() == {"partition gpu"}
    assert found["partition gpu"].says == (
        "4 nodes with gpu:a100:4, 1-00:00:00; 2 nodes with no GPUs, 1-00:00:00"
    )
    assert by_check(slurm.partitions(""))["partitions"].status == "problem"


@pytest.mark.parametrize(
    ("line", "status", "says"),
    [
        ("0,NVIDIA A100-SXM4-80GB,550.1,81920,4,Default,0", "ok", "80.0 GiB"),
        ("0,NVIDIA A100-SXM4-80GB,550.1,81920,4,Default,3", "problem", "3 memory errors"),
        ("0,NVIDIA A100-SXM4-80GB,550.1,81920,70000,Default,[N/A]", "warning", "in use"),
        ("0,NVIDIA A100-SXM4-80GB,550.1,81920,4,Prohibited,0", "problem", "Prohibited"),
    ],
)
def test_a_gpu_by_its_line_of_nvidia_smi(line: str, status: str, says: str) -> None:
    (finding,) = gpus.judge(line.split(","))
    assert finding.status == status
    assert says in finding.says


def test_packages_are_held_to_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["torch>=999", "accelerate>=1", "no-such-thing>=1", 'no-extra>=1; extra == "more"']
    asked += ['no-tool>=1; extra == "dev"']
    monkeypatch.setattr("importlib.metadata.requires", lambda _: asked)
    found = by_check(software.examine())
    assert found["torch"].status == "problem" and ">=999" in str(found["torch"].remedy)
    assert found["accelerate"].status == "ok"
    assert found["no-such-thing"].status == "problem"
    assert found["no-extra"].status == "note" and "`more`" in found["no-extra"].says
    assert "no-tool" not in found


def test_a_folder_that_keeps_the_promises_and_one_that_does_not(tmp_path: Path) -> None:
    assert storage.promises(tmp_path).status == "ok"
    assert list(tmp_path.iterdir()) == []
    told = storage.promises(Path("/proc/self"))
    assert told.status == "problem" and "output.dir" in str(told.remedy)


def test_a_local_disk_matters_on_a_cluster_alone(tmp_path: Path) -> None:
    kind = storage.filesystem(tmp_path)
    places = {"runs": tmp_path, "cache": tmp_path / "not" / "there"}
    (alone,) = storage.shared(places, cluster=False)
    assert alone.status == "ok" and kind in alone.says
    (found,) = storage.shared(places, cluster=True)
    assert found.status == ("ok" if kind in storage.SHARED else "warning")


def test_the_hub_offline_is_a_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    found = by_check(hub.examine())
    assert {check: each.status for check, each in found.items()} == {
        "access": "note",
        "token": "note",
    }
    assert "public models only" in found["token"].says


def test_a_hub_that_does_not_answer_and_a_token(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("hf_" + "a" * 34)
    token.chmod(0o644)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(token))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    found = by_check(hub.examine())
    assert found["access"].status == "warning"
    assert "HTTPS_PROXY" in str(found["access"].remedy)
    assert found["token"].says.startswith("there is one")
    assert found["token file"].remedy == f"chmod 600 {token}"
    assert not any("hf_a" in each.says for each in found.values())


def test_nodes_that_share_a_folder_see_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "3")

    def attend(node: int) -> dict[int, Any]:
        one = meeting.Meeting(tmp_path)
        one.node = node
        one.open()
        one.say("here", {"host": f"n{node}", "won": one.race()})
        return one.hear("here", 300, range(3))

    with ThreadPoolExecutor(3) as pool:
        heard = list(pool.map(attend, range(3)))
    for here in heard:
        assert meeting.judge(here, 3, tmp_path / "x").status == "ok"
    twice = {node: {**said, "won": True} for node, said in heard[0].items()}
    assert "exclusively" in meeting.judge(twice, 3, tmp_path / "x").says
    told = meeting.judge({0: heard[0][0]}, 3, tmp_path / "x")
    assert told.status == "problem" and "node 1" in told.says and "--dir" in str(told.remedy)


def test_a_node_that_is_late_takes_nobodys_findings_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "3")
    monkeypatch.setattr(meeting, "SEEN_S", 1.0)

    both = threading.Barrier(2)  # the two that are in time

    def attend(node: int) -> tuple[str, set[int]]:
        one = meeting.Meeting(tmp_path)
        one.node = node
        one.open()
        here = {"host": f"n{node}", "won": one.race()}
        one.say("here", here)
        if node < 2:
            both.wait()
        shared, heard = one.agree(here)
        return shared.says, set(heard)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(attend, range(2))
    assert first == second == attend(2), "all of them do what node 0 says"
    assert first[1] == {0, 1} and "node 2 of 3" in first[0]


def test_the_node_check_here_starts_real_ranks_and_leaves_nothing(tmp_path: Path) -> None:
    done = launcher("doctor", "--node", "--dir", tmp_path, "--json", env={"OMP_NUM_THREADS": "1"})
    document = json.loads(done.stdout)
    assert document["ok"] and document["kind"] == "node"
    found = [f for f in document["findings"] if f["area"] == "ranks"]
    assert [f["status"] for f in found] == ["ok"]
    assert list(tmp_path.iterdir()) == []


def of_one_rank(folder: Path, port: int) -> str:
    """Status and words of the check of ranks, for one; in a process of its own, for it ends its children."""
    program = (
        "import sys, pathlib\n"
        "from launcher.doctor import ranks\n"
        "from launcher.runtime.launch import World\n"
        "world = World(1, 1, 0, '127.0.0.1', int(sys.argv[2]))\n"
        "found = ranks.examine(world, pathlib.Path(sys.argv[1]))\n"
        "print(found.check, found.status, found.says)\n"
    )
    argv = [sys.executable, "-c", program, str(folder), str(port)]
    return subprocess.check_output(argv, text=True)


def test_one_rank_alone_and_one_that_can_not_start(tmp_path: Path) -> None:
    assert "1 rank ok gloo" in of_one_rank(tmp_path, network.free_port("127.0.0.1"))
    (tmp_path / "ranks.json").unlink()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = of_one_rank(tmp_path, taken.getsockname()[1])
    assert "1 rank problem failed" in said
    assert "Error" in said


def test_the_command_shows_remedies_and_ends_with_3_for_a_problem(tmp_path: Path) -> None:
    env = {"HF_HUB_OFFLINE": "1", "PATH": "/nowhere"}
    shown = launcher("doctor", "--dir", tmp_path, env=env).stdout
    assert "`launcher run` works here" in shown
    document = json.loads(launcher("doctor", "--dir", "/proc/1", "--json", code=3, env=env).stdout)
    assert not document["ok"]
    assert {f["area"] for f in document["findings"]} == {"software", "slurm", "storage", "hub"}
