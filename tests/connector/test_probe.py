"""Knocking at addresses."""

from __future__ import annotations

import ipaddress
import os
import resource
import socket
import threading
import time

import gevent
import pytest

from pyinfra_agent_connector import _probe
from pyinfra_agent_connector._probe import Outcome, TooManyAddresses, count_addresses, probe, sweep
from pyinfra_agent_protocol import Responder
from pyinfra_agent_protocol.keys import KeyPair
from tests.connector.helpers import LOCALHOST, FakeAgent, Peer, free_port, serve_quietly, until

#: All of 127.0.0.0/8 is this machine.
NETWORK = ipaddress.IPv4Network("127.0.0.0/28")


def test_probe_finds_an_agent_and_its_key():
    with FakeAgent(serve_quietly) as agent:
        probed = probe(LOCALHOST, agent.port)
        assert (probed.outcome, probed.key) == (Outcome.AGENT, agent.key.public)
        assert 0 < probed.seconds < 1
        until(lambda: agent.connections == 1)
        assert agent.conversations == [], "the handshake goes no further"


def test_probe_sends_nothing_after_message_2():
    """What arrives is message 1, an ephemeral key, and the end of the connection."""
    rest = []

    def handle(sock):
        responder = Responder(KeyPair.generate(), b"\x80")
        while True:
            data = sock.recv(4096)
            responder.receive_data(data)
            if reply := responder.data_to_send():
                break
        sock.sendall(reply)
        rest.append(sock.recv(4096))

    with Peer(handle) as peer:
        assert probe(LOCALHOST, peer.port).outcome is Outcome.AGENT
        until(lambda: rest)
        assert rest == [b""]


@pytest.mark.parametrize(
    ("handle", "words"),
    [
        (lambda sock: sock.sendall(b"SSH-2.0-OpenSSH_9.2\r\n"), "SSH"),
        (lambda sock: sock.recv(1), "closed the connection"),
        (lambda sock: sock.sendall(b"\0" * 100_000), ""),
    ],
)
def test_probe_of_something_else_says_so(handle, words):
    with Peer(handle) as peer:
        probed = probe(LOCALHOST, peer.port)
        assert probed.outcome is Outcome.OTHER
        assert words in probed.problem
        assert probed.key == b""


def test_probe_of_a_closed_port_is_refused():
    assert probe(LOCALHOST, free_port()).outcome is Outcome.REFUSED


def test_probe_of_one_that_never_answers_ends():
    """Also where it sends a byte now and then."""

    def drip(sock):
        while True:
            sock.sendall(b"p")
            gevent.sleep(0.05)

    with Peer(lambda sock: sock.recv(4096) and sock.recv(1)) as peer:
        began = time.monotonic()
        assert probe(LOCALHOST, peer.port, seconds=0.2).outcome is Outcome.SILENT
        assert time.monotonic() - began < 1
    with Peer(drip) as peer:
        began = time.monotonic()
        assert probe(LOCALHOST, peer.port, seconds=0.2).outcome is not Outcome.AGENT
        assert time.monotonic() - began < 1


def test_probe_that_was_connected_too_late_for_itself_lets_the_agent_answer():
    """As where thousands are at once, or the machine is busy with something else."""
    with socket.create_server((LOCALHOST, 0)) as server:

        def answer():
            responder = Responder(KeyPair.generate(), b"\x80")
            with server.accept()[0] as sock:
                while not (reply := responder.data_to_send()):
                    responder.receive_data(sock.recv(4096) or b"gone")
                sock.sendall(reply)
                sock.recv(1)

        thread = threading.Thread(target=answer)
        thread.start()
        gevent.spawn(time.sleep, 1.0)  # runs when the probe waits for its connection
        assert probe(LOCALHOST, server.getsockname()[1], seconds=0.6).outcome is Outcome.AGENT
        thread.join()


def test_sweep_tries_every_address_once():
    tried = []

    with FakeAgent(serve_quietly) as agent, pytest.MonkeyPatch.context() as patch:
        knock = _probe._knock
        patch.setattr(_probe, "_knock", lambda address, *rest: tried.append(address) or knock(address, *rest))
        swept = sweep(NETWORK, agent.port)
    assert sorted(tried, key=ipaddress.IPv4Address) == [str(address) for address in NETWORK.hosts()]
    assert [probed.address for probed in swept.agents] == [LOCALHOST]
    assert swept.counts[Outcome.AGENT] == 1
    assert swept.counts[Outcome.REFUSED] == 13
    assert str(swept) == "14 addresses: 1 an agent, 13 port closed"


def test_sweep_is_bounded_and_gives_its_descriptors_back(monkeypatch):
    """No more connections at once than allowed, and the limit of open files is as it was."""
    busy = [0, 0]

    def knock(*_):
        busy[0] += 1
        busy[1] = max(busy)
        gevent.sleep(0.005)
        busy[0] -= 1
        raise TimeoutError

    monkeypatch.setattr(_probe, "_knock", knock)
    monkeypatch.setattr(_probe, "MAX_CONNECTIONS", 20)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    told = []
    swept = sweep(ipaddress.IPv4Network("127.0.0.0/24"), 7963, progress=lambda *counts: told.append(counts))
    assert busy == [0, 20]
    assert swept.counts[Outcome.SILENT] == 254
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before


def test_sweep_of_a_link_leaves_half_of_the_neighbours_to_others(monkeypatch):
    """An address that does not answer keeps its place until the system has given it up."""
    monkeypatch.setattr(_probe, "_knock", lambda *_: (_ for _ in ()).throw(TimeoutError))
    monkeypatch.setattr(_probe, "_neighbour_limit", lambda: 16)
    monkeypatch.setattr(_probe, "_NEIGHBOUR_SECONDS", 0.1)
    began = time.monotonic()
    assert sweep(ipaddress.IPv4Network("127.0.0.0/27"), 7963, is_attached=True).counts[Outcome.SILENT] == 30
    assert 0.3 <= time.monotonic() - began < 1  # 8 at once: 30 take four turns, and the last does not rest


def test_sweep_that_is_too_fast_for_the_system_waits_and_tries_again(monkeypatch):
    failures = [OSError(105, "No buffer space available"), OSError(24, "Too many open files")]

    def knock(*_):
        if failures:
            raise failures.pop()
        raise ConnectionRefusedError

    monkeypatch.setattr(_probe, "_knock", knock)
    monkeypatch.setattr(_probe, "_PATIENCE_SECONDS", (0.01, 0.01))
    assert probe(LOCALHOST, 1).outcome is Outcome.REFUSED
    failures[:] = [OSError(105, "No buffer space available")] * 10
    assert probe(LOCALHOST, 1).outcome is Outcome.UNREACHABLE


@pytest.mark.parametrize(("network", "count"), [("10.0.0.0/16", 65_534), ("10.0.0.0/31", 2), ("10.0.0.1/32", 1)])
def test_addresses_are_counted(network, count):
    network = ipaddress.IPv4Network(network)
    assert count_addresses(network) == count == len(list(network.hosts()))


def test_network_that_is_too_large_is_refused():
    with pytest.raises(TooManyAddresses, match="131,072 addresses, and at most 65,536"):
        count_addresses(ipaddress.IPv4Network("10.0.0.0/15"))


def test_sweep_leaves_no_socket_open():
    with FakeAgent(serve_quietly) as agent:
        before = sorted(os.listdir("/proc/self/fd"))
        sweep(NETWORK, agent.port)
        until(lambda: len(os.listdir("/proc/self/fd")) <= len(before) + 1)
