"""Addresses and ports are this machine's own."""

from __future__ import annotations

import socket

import pytest

from launcher.errors import PreflightError
from launcher.runtime import network


def test_loopback_is_among_the_interfaces() -> None:
    assert network.interfaces()["lo"] == "127.0.0.1"
    assert network.interface_towards("127.0.0.1", 9) == "lo"


def test_an_interface_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(PreflightError, match="nosuch0") as refused:
        network.own_address("nosuch0")
    assert "lo" in str(refused.value)
    assert network.own_address("lo") == "127.0.0.1"


def test_a_free_port_can_be_bound_and_a_taken_one_is_not_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", network.free_port("127.0.0.1")))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(network.random, "sample", lambda *_: [port])
        with pytest.raises(PreflightError, match="no free port"):
            network.free_port("127.0.0.1")
    assert network.free_port("127.0.0.1") == port
