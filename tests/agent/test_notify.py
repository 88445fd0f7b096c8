"""What the service manager is told: datagrams to a socket, and silence where there is none."""

from __future__ import annotations

import os
import socket

import pytest

from pyinfra_agent._notify import (
    notify,
    notify_alive,
    notify_ready,
    notify_reloading,
    notify_stopping,
    watchdog_seconds,
)


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path, monkeypatch):
    """A service manager's end of the socket."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@pyinfra-agent-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as end:
        end.bind("\0" + name[1:] if name.startswith("@") else name)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield end


def told(manager):
    return manager.recv(4096).decode().split("\n")


def test_manager_is_told_in_one_message(manager):
    assert notify("A=1", "B=2")
    assert told(manager) == ["A=1", "B=2"]


def test_ready_stopping_and_alive_are_what_systemd_expects(manager):
    notify_ready("0 sessions")
    assert told(manager) == ["READY=1", "STATUS=0 sessions"]
    notify_alive("1 session")
    assert told(manager) == ["WATCHDOG=1", "STATUS=1 session"]
    notify_stopping(10)
    assert told(manager)[:2] == ["STOPPING=1", "EXTEND_TIMEOUT_USEC=15000000"]


def test_reload_carries_the_time_that_systemd_compares(manager):
    notify_reloading()
    first, second = told(manager)
    assert first == "RELOADING=1"
    assert int(second.removeprefix("MONOTONIC_USEC=")) > 0


def test_status_stays_one_line(manager):
    """What a file says about itself cannot make another assignment."""
    notify_ready("bad\nMAINPID=1")
    assert told(manager) == ["READY=1", "STATUS=bad?MAINPID=1"]


@pytest.mark.parametrize("address", ["", "relative", "vsock:2:1", "/no/such/socket"])
def test_without_a_manager_nothing_happens(address, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not notify("READY=1")


def test_manager_that_does_not_read_is_not_waited_for(manager):
    sent = 0
    while notify("X=" + "x" * 1000):
        sent += 1
        assert sent < 10_000
    assert sent > 0


def test_watchdog_counts_only_for_the_process_that_is_watched(monkeypatch):
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")
    assert watchdog_seconds() == 60
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert watchdog_seconds() == 60
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))
    assert watchdog_seconds() is None
    monkeypatch.delenv("WATCHDOG_PID")
    for nonsense in ("0", "", "soon"):
        monkeypatch.setenv("WATCHDOG_USEC", nonsense)
        assert watchdog_seconds() is None
