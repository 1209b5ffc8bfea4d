"""Lifelines between agents: goodbyes and deaths told apart, strangers kept out. Cut networks are in tests/slurm."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest
from jobs import wait_for

from launcher.runtime.lifeline import STRANGERS, Lifelines

CALLER = """
import sys, time
from launcher.runtime.lifeline import Lifelines
lifelines = Lifelines()
lifelines.call("127.0.0.1", int(sys.argv[1]), sys.argv[2], 1)
print("called", flush=True)
time.sleep(600)
"""


def test_an_agent_that_says_goodbye_is_not_missed() -> None:
    with Lifelines() as hub:
        port = hub.listen("127.0.0.1")
        with Lifelines() as other:
            other.call("127.0.0.1", port, hub.token, 1)
            wait_for(lambda: not hub.broken() and hub._lines)
            assert not other.broken()
        wait_for(lambda: not hub.broken() and not hub._lines)


def test_an_agent_that_is_killed_is_missed_at_once() -> None:
    with Lifelines() as hub:
        port = hub.listen("127.0.0.1")
        with subprocess.Popen(
            [sys.executable, "-c", CALLER, str(port), hub.token], stdout=subprocess.PIPE
        ) as agent:
            assert agent.stdout is not None
            assert agent.stdout.readline() == b"called\n"
            wait_for(lambda: not hub.broken() and hub._lines)
            agent.kill()
        assert wait_for(hub.broken) == {1: "died"}


def test_node_0_that_dies_is_missed_by_the_others() -> None:
    hub = Lifelines()
    port = hub.listen("127.0.0.1")
    with Lifelines() as other:
        other.call("127.0.0.1", port, hub.token, 1)
        wait_for(lambda: not hub.broken() and hub._lines)
        hub._lines[1].close()  # as the kernel does for a process that is killed
        assert wait_for(other.broken) == {0: "died"}
    with hub:
        pass


def test_strangers_are_no_nodes_and_pile_up_nowhere() -> None:
    with Lifelines() as hub:
        port = hub.listen("127.0.0.1")
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(2 * STRANGERS)]
        for said in (b"\x00\xff\n", b"1\n", b"0" * 32 + b" 1\n", f"{hub.token}\n".encode()[:20]):
            with socket.create_connection(("127.0.0.1", port)) as stranger:
                stranger.sendall(said)
        with Lifelines() as other:
            other.call("127.0.0.1", port, hub.token, 1)
            wait_for(lambda: not hub.broken() and hub._lines)
            assert set(hub._lines) == {1}
            assert len(hub._strangers) <= STRANGERS
        for line in silent:
            line.close()
        assert hub.broken() == {}


def test_without_a_line_the_agent_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as nobody, Lifelines() as other:
        nobody.bind(("127.0.0.1", 0))  # and does not listen; nor does anybody else meanwhile
        other.call("127.0.0.1", nobody.getsockname()[1], "token", 1)
        assert other.broken() == {}
    assert "no lifeline to node 0" in caplog.text
