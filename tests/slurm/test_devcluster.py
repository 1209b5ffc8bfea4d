"""The development cluster itself: separate hosts, real Slurm, and nothing left when it is gone."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from client import DevclusterError
from cluster import Cluster
from namespaces import Host

pytestmark = pytest.mark.slurm
TOOL = Path(__file__).parents[2] / "slurm" / "devcluster" / "devcluster.py"


def processes(host: Host) -> set[str]:
    """The commands that run on a host: those in its process namespace, found from outside."""
    return processes_in({namespace(host.pid)})


def namespace(pid: int) -> str:
    return str(Path(f"/proc/{pid}/ns/pid").readlink())


def processes_in(namespaces: set[str]) -> set[str]:
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str((entry / "ns" / "pid").readlink()) in namespaces:
                found.add((entry / "comm").read_text().strip())
        except OSError:
            continue  # it ended while we looked
    return found


def links() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def eventually(condition, seconds: float = 300) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def reachable(address: str, port: int = 6818) -> bool:
    """Whether the slurmd at an address takes a connection from here."""
    try:
        socket.create_connection((address, port), timeout=2).close()
    except OSError:
        return False
    return True


def test_every_node_is_up_and_idle(cluster):
    assert cluster.node_states() == {"n1": "idle", "n2": "idle", "n3": "idle", "n4": "idle"}


def test_hosts_have_names_and_addresses_of_their_own(cluster):
    names = {name: cluster.exec(name, ["hostname"]).stdout.strip() for name in cluster.hosts}
    assert names == {name: name for name in ["ctl", *cluster.nodes]}
    shown = [cluster.exec(name, ["hostname", "-I"]).stdout.split()[0] for name in cluster.nodes]
    assert shown == [cluster.address(name) for name in cluster.nodes]
    assert len(set(shown)) == len(cluster.nodes)


def test_a_program_of_one_node_talks_to_one_of_another_by_its_name(cluster):
    listen = (
        "import socket; s = socket.create_server((socket.gethostname(), 0)); print(s.getsockname()[1], flush=True);"
        "c, peer = s.accept(); print(peer[0], c.recv(100).decode())"
    )
    connect = (
        "import socket, sys; socket.create_connection(('n1', int(sys.argv[1]))).send(b'hello')"
    )
    with subprocess.Popen(
        cluster.inside("n1", [sys.executable, "-c", listen]), stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            cluster.exec("n2", [sys.executable, "-c", connect, server.stdout.readline().strip()])
            assert server.stdout.read().split() == [cluster.address("n2"), "hello"]
        finally:
            server.kill()


def test_srun_from_here_reaches_two_nodes(cluster):
    assert sorted(cluster.srun("-N2", "-wn1,n3", "hostname").split()) == ["n1", "n3"]


def test_a_batch_job_starts_its_steps_on_all_of_its_nodes(cluster, tmp_path):
    out = tmp_path / "out"
    job = cluster.sbatch(
        "-N2", f"--output={out}", "--wrap=srun hostname; echo batch on $(hostname)"
    )
    assert cluster.wait_state(job, "COMPLETED") == "COMPLETED"
    *steps, batch = out.read_text().splitlines()
    assert len(set(steps)) == 2 and batch.removeprefix("batch on ") in steps


def test_gpus_are_counted_and_handed_out(cluster):
    show = ("printenv", "CUDA_VISIBLE_DEVICES")
    assert cluster.srun("-N1", "--gres=gpu:2", *show) == "0,1\n"
    assert cluster.srun("-N2", "--gpus-per-node=a100:3", *show) == "0,1,2\n" * 2
    with pytest.raises(DevclusterError, match="not available"):
        cluster.srun("-N1", "--gres=gpu:5", "true")


def test_without_accounting_sacct_fails_as_on_many_sites(cluster):
    assert cluster.run(["sacct"], check=False).returncode == 1


def test_waiting_for_a_job_that_ends_otherwise_says_so(cluster):
    job = cluster.sbatch("--output=/dev/null", "--wrap=exit 3")
    with pytest.raises(DevclusterError, match="ExitCode=3:0"):
        cluster.wait_state(job, "COMPLETED")


def test_high_takes_the_place_of_low_which_is_queued_again(fragile):
    all_of_n1 = ("-wn1", "--exclusive", "--output=/dev/null", "--wrap=sleep 300")
    fragile.scontrol("update", "partition=low", "GraceTime=0")
    try:
        low = fragile.sbatch("--partition=low", *all_of_n1)
        fragile.wait_state(low, "RUNNING")
        high = fragile.sbatch("--partition=high", *all_of_n1)
        fragile.wait_state(high, "RUNNING")
        assert fragile.wait_state(low, "PENDING") == "PENDING"
    finally:
        fragile.scontrol("update", "partition=low", "GraceTime=3")


def test_a_killed_node_loses_its_processes_and_comes_back(fragile):
    job = fragile.sbatch("-wn2", "--output=/dev/null", "--wrap=sleep 300")
    assert fragile.wait_state(job, "RUNNING") == "RUNNING"
    node = fragile.hosts["n2"]
    here = namespace(node.pid)
    assert eventually(lambda: {"slurmd", "slurmstepd", "sleep"} <= processes(node))

    fragile.kill_node("n2")
    assert processes_in({here}) == set()
    assert not reachable(fragile.address("n2"))
    assert fragile.status()["n2"] == "off"

    # What Slurm does by itself after 20 s.
    fragile.scontrol("update", "node=n2", "state=down", "reason=killed")
    assert eventually(lambda: "Restarts=1" in fragile.describe(job))
    assert eventually(lambda: fragile.states(job) == {"PENDING"})

    fragile.start_node("n2")
    assert eventually(lambda: reachable(fragile.address("n2")))
    assert fragile.exec("n2", ["hostname"]).stdout == "n2\n"


def test_a_cut_node_runs_on_out_of_reach_and_heals(fragile):
    assert reachable(fragile.address("n3"))
    fragile.cut("n3")
    assert not reachable(fragile.address("n3"))
    assert reachable(fragile.address("n4"))
    assert "slurmd" in processes(fragile.hosts["n3"])
    fragile.heal("n3")
    assert eventually(lambda: reachable(fragile.address("n3")))
    assert fragile.srun("-wn3", "hostname") == "n3\n"


@pytest.fixture
def place():
    """A folder whose path is short wherever pytest's own are: slurmd's sockets are below it, and have 108 letters."""
    with tempfile.TemporaryDirectory(prefix="devc-") as folder:
        yield Path(folder)


def test_down_leaves_no_process_link_mount_or_file(cluster, place):
    before, mounts = links(), Path("/proc/self/mounts").read_text()
    other = Cluster(place / "other").up(tied=True)
    namespaces = {namespace(host.pid) for host in other.hosts.values()}
    job = other.sbatch("-N2", "--output=/dev/null", "--wrap=sleep 300 & srun sleep 300")
    other.wait_state(job, "RUNNING")
    expected = {"munged", "slurmctld", "slurmd", "sleep"}
    assert eventually(lambda: expected <= processes_in(namespaces))
    assert len(links() - before) == 1 and other.address("n1") != cluster.address("n1")

    other.down()
    assert processes_in(namespaces) == set()
    assert links() == before
    assert Path("/proc/self/mounts").read_text() == mounts
    assert not other.folder.exists()
    assert cluster.srun("hostname").strip() in cluster.nodes, "the other cluster is as it was"


def test_the_cluster_ends_with_its_owner_even_by_sigkill(cluster, place):
    owner = "import sys, time; from cluster import *; Cluster(Path(sys.argv[1])).up(tied=True); print('up', flush=True); time.sleep(600)"
    before = links()
    with subprocess.Popen(
        [sys.executable, "-c", owner, place / "owned"],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(TOOL.parent)},
    ) as process:
        assert process.stdout.readline() == b"up\n"
        hosts = Cluster(place / "owned").hosts.values()
        namespaces = {namespace(host.pid) for host in hosts}
        process.send_signal(signal.SIGKILL)
    assert eventually(lambda: processes_in(namespaces) == set())
    assert eventually(lambda: links() == before)


def test_a_folder_that_is_no_cluster_is_left_alone(tmp_path):
    (tmp_path / "precious").touch()
    with pytest.raises(DevclusterError, match="no cluster's"):
        Cluster(tmp_path).up()
    Cluster(tmp_path).down()
    assert (tmp_path / "precious").exists()


def test_a_process_that_took_over_an_id_is_left_alone():
    with subprocess.Popen(["sleep", "60"]) as process:
        Host(process.pid, started=1).end()
        assert process.poll() is None
        process.kill()


def test_the_tool_runs_a_command_with_a_cluster_around_it(cluster):
    tool = [sys.executable, TOOL, "run", "--nodes=2", "--", "sh", "-c"]
    script = "hostname; srun -N2 hostname | sort; exit 7"
    done = subprocess.run([*tool, script], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout.split()) == (7, ["ctl", "n1", "n2"]), done.stderr


def test_the_tool_keeps_a_cluster_from_one_call_to_the_next(cluster, place):
    def tool(*argv: str) -> str:
        return cluster.run([sys.executable, str(TOOL), "--dir", str(place / "kept"), *argv]).stdout

    try:
        said = tool("up", "--nodes=2", "--gpus=0")
        assert said == tool("env") == f"export SLURM_CONF={place}/kept/etc/slurm.conf\n"
        assert [line.split()[2:] for line in tool("status").splitlines()] == [
            ["on"],
            ["on", "idle"],
            ["on", "idle"],
        ]
        tool("kill", "n2")
        assert tool("status").splitlines()[2].split()[2] == "off"
        tool("start", "n2")
        tool("cut", "n1")
        tool("heal", "n1")
        assert tool("exec", "n2", "--", "hostname") == "n2\n"
        with pytest.raises(DevclusterError, match="no node 'n3'"):
            tool("cut", "n3")
    finally:
        tool("down")
    with pytest.raises(DevclusterError, match="no cluster is up"):
        tool("status")
