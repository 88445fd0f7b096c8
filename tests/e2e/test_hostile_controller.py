"""A peer that nobody let in costs the agent a little for a short time, and other controllers nothing."""

from __future__ import annotations

import contextlib
import os
import socket

import pytest

from pyinfra_agent_connector._errors import Unreachable
from pyinfra_agent_connector._identity import load_or_create
from pyinfra_agent_protocol import SESSION_ID_BYTES, ControllerPayload, Exec, Initiator, Session, Side
from pyinfra_agent_protocol.keys import KeyPair
from tests.e2e.helpers import eventually

CONNECTIONS = 300
POOL = 256  # connections that have not proved who they are, at once
HANDSHAKE_SECONDS = 10  # what an agent gives a peer to prove who it is
GROWTH_MAX_KIB = 4096


@pytest.fixture
def served(shared):
    """The agent has served its controller before, so that what it keeps for good is there."""
    agent, controller = shared
    for _ in range(3):
        agent.serves(controller)
    return agent, controller


@contextlib.contextmanager
def nothing_is_left(agent, seconds=5.0):
    """Assert that descriptors and memory are, soon after the block, what they were before it."""
    descriptors, resident = agent.descriptors, agent.kib()
    yield
    eventually(lambda: agent.descriptors <= descriptors, seconds, "the end of the last connection")
    assert agent.process.poll() is None
    assert agent.kib() - resident < GROWTH_MAX_KIB
    assert "Traceback" not in agent.log.read_text()
    assert "request-failed" not in agent.log.read_text()


def answer_to(agent, sent):
    """Send *sent*; return all that comes back before the agent closes."""
    peer = socket.create_connection(agent.address, timeout=HANDSHAKE_SECONDS + 3)
    with contextlib.suppress(ConnectionError):
        peer.sendall(sent)
    return rest_of(peer)


def hello_of(agent, keypair=None):
    """Come as far as message 2; return the socket and the initiator."""
    peer = socket.create_connection(agent.address, timeout=HANDSHAKE_SECONDS + 3)
    initiator = Initiator(keypair or KeyPair.generate())
    peer.sendall(initiator.data_to_send())
    while initiator.receive_data(heard(peer)) is None:
        pass
    return peer, initiator


def heard(peer):
    """Return what arrives; raise where the agent made room for others instead."""
    data = peer.recv(65536)
    if not data:
        peer.close()
        raise ConnectionError
    return data


def rest_of(peer):
    """Return what still comes before the agent closes; a reset is an end as well."""
    received = b""
    with peer, contextlib.suppress(ConnectionError):
        while data := peer.recv(65536):
            received += data
    return received


def opening():
    return ControllerPayload(session=os.urandom(SESSION_ID_BYTES), attempt=1, resume=False, received=0).encode()


def preface():
    return Initiator(KeyPair.generate()).data_to_send()


@pytest.mark.parametrize(
    "sent",
    [
        b"\0" * 70_000,
        b"\xff" * 70_000,
        b"GET / HTTP/1.1\r\nHost: agent\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        os.urandom(1 << 20),
    ],
    ids=["zeros", "ones", "http", "ssh", "tls", "random"],
)
def test_agent_ends_a_connection_of_garbage_with_little_or_nothing_to_say(sent, served):
    agent, controller = served

    with nothing_is_left(agent):
        for _ in range(5):
            assert len(answer_to(agent, sent)) <= 1024
            agent.serves(controller)


def serves_soon(agent, controller):
    """The controller is behind the same address: its connection may be the one that makes room, until it has spoken."""

    def served():
        try:
            agent.serves(controller)
        except Unreachable:
            return False
        return True

    eventually(served, 5, "a connection that is let in")


def test_agent_serves_its_controller_while_hundreds_of_silent_connections_stand_open(served):
    """Each says nothing, half a preface, all of it, or comes as far as message 2, and then says no more."""
    agent, controller = served
    whole = preface()

    with nothing_is_left(agent, HANDSHAKE_SECONDS + 5), contextlib.ExitStack() as stack:
        before = agent.descriptors
        for number in range(CONNECTIONS):
            peer = stack.enter_context(socket.create_connection(agent.address, timeout=5))
            with contextlib.suppress(ConnectionError):
                peer.sendall((b"", whole[: len(whole) // 2], whole)[number % 3])
            if number % 60 == 0:
                with contextlib.suppress(ConnectionError):
                    stack.enter_context(hello_of(agent)[0])
                serves_soon(agent, controller)
        serves_soon(agent, controller)
        assert before < agent.descriptors < before + POOL + 50
        # Left open on our side: the agent gets rid of them by itself.
        eventually(lambda: agent.descriptors <= before, HANDSHAKE_SECONDS + 5, "the end of the idle connections")


def test_agent_that_hears_the_end_of_half_a_preface_closes_at_once(served):
    agent, controller = served
    whole = preface()

    with nothing_is_left(agent):
        for length in range(0, len(whole), 7):
            with socket.create_connection(agent.address, timeout=5) as peer:
                peer.sendall(whole[:length])
                peer.shutdown(socket.SHUT_WR)
                assert rest_of(peer) == b""
        agent.serves(controller)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda message: bytes(len(message)),
        lambda message: message[:-1] + bytes([message[-1] ^ 1]),
        lambda message: message[:2] + os.urandom(len(message) - 2),
        lambda message: message[: len(message) // 2],
        lambda message: b"\xff\xff" + os.urandom(65_535),
        lambda message: b"\0\0",
    ],
    ids=["zeros", "one bit", "random", "half", "too long", "empty"],
)
def test_agent_refuses_a_third_message_that_is_garbage_without_a_word(spoil, served):
    agent, controller = served

    with nothing_is_left(agent):
        peer, initiator = hello_of(agent, load_or_create(controller.home).keypair)
        message, _ = initiator.finish(opening())
        with contextlib.suppress(OSError):  # the agent may have closed before all of it was sent
            peer.sendall(spoil(message))
            peer.shutdown(socket.SHUT_WR)
        assert rest_of(peer) == b""
        agent.serves(controller)


@pytest.mark.parametrize(
    "payload", [b"", b"\xc1", b"\x80", os.urandom(3000)], ids=["none", "reserved", "no field", "random"]
)
def test_agent_refuses_a_stranger_alike_whatever_his_third_message_holds(payload, served):
    agent, controller = served

    with nothing_is_left(agent):
        answers = []
        for content in (payload, opening()):
            peer, initiator = hello_of(agent)
            message, transport = initiator.finish(content)
            peer.sendall(message)
            answers.append(transport.receive_data(rest_of(peer)))
        assert answers[0] == answers[1] != []
        agent.serves(controller)


@pytest.mark.parametrize(
    "payload", [b"", b"\xc1", b"\x80", os.urandom(3000)], ids=["none", "reserved", "no field", "random"]
)
def test_agent_survives_its_own_controller_with_a_third_message_that_holds_garbage(payload, served):
    agent, controller = served

    with nothing_is_left(agent):
        peer, initiator = hello_of(agent, load_or_create(controller.home).keypair)
        peer.sendall(initiator.finish(payload)[0])
        rest_of(peer)
        agent.serves(controller)


@pytest.mark.parametrize("sealed", [False, True], ids=["no record", "a record of garbage"])
def test_agent_ends_the_link_of_a_welcomed_controller_that_sends_garbage(sealed, served):
    agent, controller = served

    with nothing_is_left(agent):
        peer, initiator = hello_of(agent, load_or_create(controller.home).keypair)
        message, transport = initiator.finish(opening())
        peer.sendall(message)
        records = []
        while not records:
            records = transport.receive_data(peer.recv(65536))
        peer.sendall(transport.encrypt(os.urandom(500)) if sealed else os.urandom(70_000))
        rest_of(peer)
        agent.serves(controller)


def test_agent_survives_a_welcomed_controller_that_breaks_the_protocol_while_it_is_being_written_to(lab):
    """The writer waits for room that never comes, and the reader has a last word to say on the same socket."""
    controller = lab.controller()
    agent = lab.agent(controller)
    started = lab.directory / "started"
    peer, initiator = hello_of(agent, load_or_create(controller.home).keypair)
    message, transport = initiator.finish(opening())
    peer.sendall(message)
    records = []
    while not records:
        records = transport.receive_data(peer.recv(65536))
    session = Session(Side.CONNECTOR)
    session.attach(0)
    script = f"touch {started}.$1; exec head -c 50000000 /dev/zero"
    for number in range(8):
        session.open(Exec(argv=(b"sh", b"-c", script.encode(), b"sh", str(number).encode())))
    while (record := session.next_record()) is not None:
        peer.sendall(transport.encrypt(record))
    eventually(lambda: len(list(lab.directory.glob("started.*"))) == 8, 10, "the start of the commands")

    peer.sendall(transport.encrypt(b"\xff" * 500))

    eventually(lambda: "protocol broken" in agent.log.read_text(), 5, "the end of the link")
    peer.close()
    agent.serves(controller)
    assert "Traceback" not in agent.log.read_text()
