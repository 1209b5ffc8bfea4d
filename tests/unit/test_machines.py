"""Which machines a plan is made for: GPUs and memory here, GPUs that Slurm is asked for, and profiles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import UsageError
from launcher.job.slurm import SlurmSpec
from launcher.job.spec import JobSpec, ResourcesSpec
from launcher.plan import hardware, machines
from launcher.plan.hardware import Gpu, memory_here, named_gpus, parse_smi
from launcher.plan.machines import Machines, gpu_profiles, profile_of, resolve_machines, slurm_gpus

GIB = 2**30
A100 = Gpu("NVIDIA A100-SXM4-80GB", 81920 * 2**20, 70 * GIB)
SMI = (
    "0, GPU-aaaa-1, NVIDIA A100-SXM4-80GB, 81920, 81000\n"
    "1, GPU-bbbb-2, NVIDIA A100-SXM4-80GB, 81920, 40000\n"
    "2, GPU-cccc-3, NVIDIA GB10, [N/A], [N/A]\n"
)


def spec(slurm: dict[str, Any] | None = None, **resources: Any) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "test",
            "model": {"path": "org/model"},
            "input": {"path": "prompts.jsonl"},
            "resources": resources,
            "slurm": slurm or {},
        }
    )


def resolve(
    monkeypatch: pytest.MonkeyPatch, found: list[Gpu], here: bool, job: JobSpec
) -> Machines:
    monkeypatch.setattr(machines, "gpus_here", lambda: found)
    monkeypatch.setattr(machines, "named_gpus", lambda: [Gpu(gpu.name) for gpu in found])
    return resolve_machines(job, here=here)


@pytest.mark.parametrize(
    ("found", "here", "resources", "expected"),
    [  # found here, run here?, resources -> device, gpus per node
        (0, True, {}, ("cpu", 0)),
        (0, True, {"gpus_per_node": 4}, ("cpu", 0)),  # the same spec runs on a laptop
        (2, True, {}, ("cuda", 2)),
        (2, True, {"gpus_per_node": 1}, ("cuda", 1)),
        (2, True, {"gpus_per_node": 0}, ("cpu", 0)),
        (2, True, {"device": "cpu"}, ("cpu", 0)),
        (0, False, {}, ("cpu", 0)),
        (0, False, {"gpus_per_node": 4}, ("cuda", 4)),
        (2, False, {"gpus_per_node": 8}, ("cuda", 8)),
        (2, False, {}, ("cuda", 2)),
        (0, False, {"gpus_per_node": 4, "device": "cpu"}, ("cpu", 0)),
        (0, False, {"gpus_per_node": 4, "device": "cuda"}, ("cuda", 4)),
    ],
)
def test_device(
    found: int,
    here: bool,
    resources: dict[str, Any],
    expected: tuple[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = resolve(monkeypatch, [A100] * found, here, spec(**resources))
    assert (result.device, result.gpus_per_node) == expected
    assert (result.gpu is None) == (result.device == "cpu")


@pytest.mark.parametrize(
    ("found", "here", "resources"),
    [
        (0, True, {"device": "cuda"}),
        (1, True, {"gpus_per_node": 2}),
        (0, False, {"device": "cuda"}),
        (4, False, {"device": "cuda", "gpus_per_node": 0}),
    ],
)
def test_gpus_that_are_not_there(
    found: int, here: bool, resources: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="not there"):
        resolve(monkeypatch, [A100] * found, here, spec(**resources))


def test_what_is_free_counts_here_and_what_a_gpu_has_counts_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = resolve(monkeypatch, [A100], True, spec())
    assert here.gpu is not None
    assert here.gpu.memory_bytes == 70 * GIB
    there = resolve(monkeypatch, [A100], False, spec(gpus_per_node=2))
    assert there.gpu is not None
    assert there.gpu.memory_bytes == gpu_profiles()["A100-80GB"].memory_bytes
    assert "the GPU of this machine" in there.notes[0]


def test_gpu_is_assumed_aloud_or_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assumed = resolve(monkeypatch, [], False, spec(gpus_per_node=1))
    assert assumed.gpu is not None
    assert assumed.gpu.name == "A100-80GB"
    assert "A100-80GB" in assumed.notes[0]
    named = resolve(monkeypatch, [A100], False, spec(gpus_per_node=1, gpu="h100"))
    assert named.gpu is not None
    assert named.gpu.name == "H100"
    assert named.notes == ()
    with pytest.raises(UsageError, match="A100-80GB"):
        resolve(monkeypatch, [], False, spec(gpus_per_node=1, gpu="A100-80"))


def test_run_is_on_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    result = resolve(monkeypatch, [], True, spec(nodes=3))
    assert result.nodes == 1
    assert "one machine" in result.notes[0]
    assert resolve(monkeypatch, [], False, spec(nodes=3)).nodes == 3


@pytest.mark.parametrize(
    ("slurm", "count"),
    [
        ({}, None),
        ({"gres": "gpu"}, 1),
        ({"gres": "gpu:4"}, 4),
        ({"gres": "gpu:a100:4"}, 4),
        ({"gres": "gres/gpu:a100:2(S:0-1),gpu:v100:1,nvme:2"}, 3),
        ({"gres": "nvme:2"}, None),
        ({"gpus_per_node": 4}, 4),
        ({"gpus_per_node": "a100:8"}, 8),
    ],
)
def test_gpus_asked_of_slurm(
    slurm: dict[str, Any], count: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert slurm_gpus(SlurmSpec.model_validate(slurm)) == count
    result = resolve(monkeypatch, [], False, spec(slurm=slurm))
    assert result.gpus_per_node == (count or 0)


def test_contradiction_between_resources_and_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    job = spec(slurm={"gres": "gpu:2"}, gpus_per_node=4)
    with pytest.raises(UsageError, match=r"slurm\.gres"):
        resolve(monkeypatch, [], False, job)


@pytest.mark.parametrize(
    ("slurm", "expected"),
    [
        ({"mem": "64G"}, 64 * GIB),
        ({"mem": "1T"}, 1024 * GIB),
        ({"mem": "2048"}, 2 * GIB),
        ({"mem_per_cpu": "4G", "cpus_per_task": 8}, 32 * GIB),
    ],
)
def test_memory_asked_of_slurm(slurm: dict[str, Any], expected: int) -> None:
    result = resolve_machines(spec(slurm=slurm, device="cpu"), here=False)
    assert result.host_bytes == expected
    assert result.host_note is None


def test_memory_of_this_machine_is_an_assumption_elsewhere() -> None:
    total, available = memory_here()
    there = resolve_machines(spec(slurm={"mem": "0"}, device="cpu"), here=False)
    assert there.host_bytes == total
    assert "slurm.mem" in (there.host_note or "")
    here = resolve_machines(spec(device="cpu"), here=True)
    assert here.host_note is None
    assert 0 < here.host_bytes <= total
    assert 0 < available <= total


@pytest.mark.parametrize(
    ("line", "folder", "names"),
    [
        ("0::/job/step", "", hardware.CGROUP_FILES[""]),
        ("4:memory:/job/step", "memory", hardware.CGROUP_FILES["memory"]),
    ],
)
def test_cgroups_limit_the_memory(
    line: str,
    folder: str,
    names: tuple[str, str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "own").write_text(f"7:cpu,cpuacct:/\n{line}\n")
    monkeypatch.setattr(hardware, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(hardware, "CGROUPS", tmp_path)
    limit, used, cache = names
    step = tmp_path / folder / "job" / "step"
    step.mkdir(parents=True)
    for group, bound in ((step, "max"), (step.parent, str(300 * 2**20))):
        (group / limit).write_text(bound)
        (group / used).write_text(str(100 * 2**20))
        (group / "memory.stat").write_text(f"anon 5\n{cache} {40 * 2**20}\n")
    assert memory_here() == (300 * 2**20, 240 * 2**20)


def test_nvidia_smi_lines() -> None:
    everything = parse_smi(SMI, None)
    assert [gpu.total_bytes for gpu in everything] == [81920 * 2**20, 81920 * 2**20, None]
    assert parse_smi(SMI, ["1"]) == [everything[1]]
    assert parse_smi(SMI, ["GPU-bbbb", "0"]) == [everything[1], everything[0]]
    assert parse_smi(SMI, []) == []
    assert parse_smi("No devices were found\n", None) == []


def test_no_driver_is_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(hardware, "PROC_GPUS", tmp_path / "gpus")
    assert hardware.gpus_here() == []
    folder = tmp_path / "gpus" / "0000:17:00.0"
    folder.mkdir(parents=True)
    (folder / "information").write_text("Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t 57\n")
    assert named_gpus() == [Gpu("NVIDIA H100 80GB HBM3")]
    assert hardware.gpus_here() == named_gpus()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert hardware.gpus_here() == []


def test_nvidia_smi_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\nprintf '%s' '{SMI}'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
    assert [gpu.name for gpu in hardware.gpus_here()] == ["NVIDIA A100-SXM4-80GB", "NVIDIA GB10"]


@pytest.mark.parametrize(
    ("name", "profile"),
    [
        ("Tesla V100-SXM2-16GB", "V100-16GB"),
        ("Tesla V100-SXM2-32GB-LS", "V100-32GB"),
        ("NVIDIA A100-PCIE-40GB", "A100-40GB"),
        ("NVIDIA A100 80GB PCIe", "A100-80GB"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 NVL", "H100-NVL"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40", "L40"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA A10G", "A10"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("AMD Instinct MI300X", "MI300X"),
    ],
)
def test_profile_of_a_gpu(name: str, profile: str) -> None:
    found = profile_of(Gpu(name))
    assert found is not None
    assert found.name == profile


def test_gpu_that_the_table_does_not_know() -> None:
    assert profile_of(Gpu("NVIDIA X999")) is None
    found = profile_of(Gpu("NVIDIA X999", 100 * GIB))
    assert found is not None
    assert 90 * GIB < found.memory_bytes < 100 * GIB
    assert found.bandwidth is None


def test_profiles_are_plausible() -> None:
    for name, profile in gpu_profiles().items():
        assert 10 * GIB < profile.memory_bytes < 300 * GIB, name
        assert profile.bandwidth is not None
        assert 1e11 < profile.bandwidth < 1e13, name
        assert profile.flops["float16"] > profile.flops["float32"], name
    assert ResourcesSpec().gpu == "auto"


def test_profiles_are_whole_and_say_where_they_are_from() -> None:
    table = json.loads((Path(machines.__file__).parent / "gpus.json").read_text())["gpus"]
    wanted = {"V100-32GB", "A100-40GB", "A100-80GB", "H100", "H200", "L40S", "MI250X", "MI300X"}
    assert wanted <= set(table)
    for name, entry in table.items():
        assert entry["source"], name
        assert 10 <= entry["link_gb_s"] <= entry["bandwidth_gb_s"], name
        assert entry["tflops"]["float16"] > entry["tflops"]["float32"] > 5, name
        profile = gpu_profiles()[name]
        assert profile.link == entry["link_gb_s"] * 1e9
        assert profile.memory_bytes < 200 * GIB
