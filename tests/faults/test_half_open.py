"""Thousands who connect and do not prove who they are: a few are kept, for a short time, and nobody is locked out."""

from __future__ import annotations

import resource
import select
import socket
import threading
import time
from contextlib import suppress

import gevent
import pytest

from pyinfra_agent_protocol import Initiator
from pyinfra_agent_protocol.keys import KeyPair
from tests.e2e.helpers import reset_peak
from tests.faults.helpers import connected, until
from tests.faults.proxy import LOCALHOST, FaultProxy

CONNECTIONS = 2000
FLOOD_SECONDS = 3
POOL = 256
HELD_SECONDS = 10
SLACK_SECONDS = 1.5
CONNECT_SECONDS_MAX = 1.0
OTHER_ADDRESS = "127.0.0.2"
KIB_FOR_EACH_MAX = 64
DESCRIPTORS_BESIDE_POOL_MAX = 16

PREFACE_AND_MESSAGE_1 = Initiator(KeyPair.generate()).data_to_send()
OPENINGS = (b"", PREFACE_AND_MESSAGE_1[:8], PREFACE_AND_MESSAGE_1)


class Flood:
    """A thread that opens connections as fast as it was told and keeps them, and sees when each is ended."""

    def __init__(self, port):
        self._port = port
        self._thread = threading.Thread(target=self._run, name="flood")
        self._open = {}
        self.held_seconds = []
        self.opened = 0
        self.opened_all = threading.Event()

    @property
    def kept(self):
        return len(self._open)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exc):
        self._thread.join()
        for sock, _ in self._open.values():
            sock.close()

    def _run(self):
        started = time.monotonic()
        ended = select.epoll()
        while self.opened < CONNECTIONS:
            self._open_one(ended)
            # Spread evenly; what the agent ends meanwhile is seen at once.
            due = started + self.opened * FLOOD_SECONDS / CONNECTIONS
            self._see_ends(ended, max(0, due - time.monotonic()))
        self.opened_all.set()
        deadline = time.monotonic() + HELD_SECONDS + SLACK_SECONDS
        while self._open and time.monotonic() < deadline:
            self._see_ends(ended, 0.1)
        ended.close()

    def _open_one(self, ended):
        sock = socket.create_connection((LOCALHOST, self._port))
        self._open[sock.fileno()] = (sock, time.monotonic())
        with suppress(OSError):
            sock.sendall(OPENINGS[self.opened % len(OPENINGS)])
        # With message 1 the agent answers, which is not read: only the end counts.
        ended.register(sock, select.EPOLLRDHUP)
        self.opened += 1

    def _see_ends(self, ended, seconds):
        for descriptor, _ in ended.poll(seconds):
            sock, opened_at = self._open.pop(descriptor)
            self.held_seconds.append(time.monotonic() - opened_at)
            ended.unregister(descriptor)
            sock.close()


@pytest.fixture
def _many_descriptors():
    """Allow this process a descriptor for every connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS + 500
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"needs {wanted} descriptors, and `ulimit -Hn` says {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("_many_descriptors")
def test_half_open_connections_are_few_and_lock_nobody_out(lab):
    """Of 2,000 connections no more than the pool is kept, none for longer than its time, and a controller comes in."""
    controller = lab.controller()
    agent = lab.agent(controller)
    with FaultProxy(agent.port, source=OTHER_ADDRESS) as proxy:
        with connected(proxy.port, controller) as client:  # imports and caches are paid for
            client.run(["true"])
        before_kib, before_descriptors = agent.kib(), agent.descriptors
        reset_peak(agent.process.pid)
        connect_seconds = []
        most_descriptors = 0
        with Flood(agent.port) as flood:
            while not flood.opened_all.is_set():
                if flood.opened > POOL:  # from here on the pool is full
                    started = time.monotonic()
                    with connected(proxy.port, controller) as client:
                        connect_seconds.append(time.monotonic() - started)
                        assert client.run(["true"]).exit == 0
                most_descriptors = max(most_descriptors, agent.descriptors)
                gevent.sleep(0.05)
            until(lambda: flood.kept <= POOL, seconds=3, what="that the pool alone is kept")
        growth_kib = agent.kib("VmHWM") - before_kib
    print(
        f"{CONNECTIONS} connections: {POOL} kept, at most {max(flood.held_seconds):.2f} s held,"
        f" {growth_kib / POOL:.1f} KiB for each of the pool, {most_descriptors - before_descriptors} descriptors more;"
        f" a controller connected {len(connect_seconds)} times in {max(connect_seconds):.3f} s at most"
    )
    assert flood.opened == CONNECTIONS
    assert len(flood.held_seconds) == CONNECTIONS, "some were never ended"
    assert max(flood.held_seconds) < HELD_SECONDS + SLACK_SECONDS
    assert most_descriptors - before_descriptors <= POOL + DESCRIPTORS_BESIDE_POOL_MAX
    assert growth_kib < POOL * KIB_FOR_EACH_MAX
    assert len(connect_seconds) >= 5
    assert max(connect_seconds) < CONNECT_SECONDS_MAX
    assert "connection-failed" not in agent.log.read_text()
