"""Opening a link: what the user is told, and what the other side gets to see."""

from __future__ import annotations

import os
import socket as plain_socket
import threading
import time
from contextlib import suppress

import gevent
import pytest

from pyinfra_agent_connector import _link, _opening
from pyinfra_agent_connector._errors import NotAuthorized, Unreachable
from pyinfra_agent_connector._known import UntrustedAgent
from pyinfra_agent_connector._opening import Endpoint, open_link
from pyinfra_agent_protocol import AgentPayload, ControllerPayload, ExecResult, NotAnAgent, Responder
from pyinfra_agent_protocol._frames import FrameType, encode_header
from pyinfra_agent_protocol._messages import Ping
from pyinfra_agent_protocol.keys import KeyPair, format_public
from tests.connector.helpers import (
    SECONDS,
    FakeAgent,
    Peer,
    accept_any,
    client_of,
    endpoint,
    free_port,
    hang_up,
    new_identity,
    serve_quietly,
    until,
)

PAYLOAD = ControllerPayload(session=bytes(16), attempt=1, resume=False)


def refusal(port: int, seconds: float = SECONDS, keypair: KeyPair | None = None, check_key=accept_any) -> str:
    """Open a link, which must fail in time, and return the error's one line."""
    began = time.monotonic()
    with pytest.raises(Unreachable) as caught:
        open_link(endpoint(port), keypair or KeyPair.generate(), check_key, PAYLOAD, seconds)
    assert time.monotonic() - began < seconds + 1
    text = str(caught.value)
    assert isinstance(caught.value, OSError)
    assert len(text.splitlines()) == 1
    assert f"127.0.0.1:{port}" in text
    return text


def test_link_to_nothing_says_that_nothing_listens():
    assert "nothing listens" in refusal(free_port())


def test_link_to_silence_ends_in_time():
    """A server that accepts and says nothing is no agent after the time is over."""
    with Peer(lambda sock: sock.recv(1) and gevent.sleep(SECONDS)) as peer:
        assert "does not answer as a pyinfra agent within 0.2 s" in refusal(peer.port, 0.2)


def test_link_to_dribble_ends_in_time():
    """A peer that sends a byte now and then does not stretch the time."""
    key = KeyPair.generate()

    def dribble(sock):
        responder = Responder(key, b"")
        while not (answer := responder.data_to_send()):
            responder.receive_data(sock.recv(4096))
        for byte in answer:
            sock.sendall(bytes([byte]))
            gevent.sleep(0.02)

    with Peer(dribble) as peer:
        assert "within 0.3 s" in refusal(peer.port, 0.3)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "but an SSH server"),
        (b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", "but an HTTP server"),
        (bytes(range(256)), "its first bytes are"),
        (b"\x1b]0;owned\x07\n\n" * 9, "its first bytes are"),
    ],
    ids=["ssh", "http", "garbage", "escape sequences"],
)
def test_link_to_another_protocol_is_no_agent(said, words):
    """The text names the other protocol, and shows nothing that a terminal would obey."""

    def answer(sock):
        sock.recv(1)
        sock.sendall(said)
        sock.recv(4096)

    with Peer(answer) as peer:
        text = refusal(peer.port)
    assert "is not a pyinfra agent" in text
    assert words in text
    assert text.isprintable()


def test_link_that_is_closed_at_once_says_so():
    with Peer(lambda sock: None) as peer:
        text = refusal(peer.port)
    assert "closed the connection" in text or "broke the connection" in text


def test_link_that_is_closed_instead_of_a_welcome_says_so():
    with FakeAgent(hang_up) as agent:
        assert "instead of welcoming this controller" in refusal(agent.port)


def test_link_with_a_broken_handshake_says_so():
    """A second message that does not verify is a failed handshake."""

    def forge(sock):
        responder = Responder(KeyPair.generate(), b"")
        while not (answer := responder.data_to_send()):
            responder.receive_data(sock.recv(4096))
        sock.sendall(answer[:-1] + bytes([answer[-1] ^ 1]))
        sock.recv(4096)

    with Peer(forge) as peer:
        assert "the handshake with" in refusal(peer.port)


def test_link_to_our_own_key_is_refused():
    key = KeyPair.generate()
    with FakeAgent(serve_quietly, key=key) as agent:
        assert "our own key" in refusal(agent.port, keypair=key)


def test_link_to_an_impossible_name_says_so():
    for name in ("no-such-host.invalid", "a" * 64 + ".example"):
        with pytest.raises(Unreachable) as caught:
            open_link(Endpoint(name, 7963), KeyPair.generate(), accept_any, PAYLOAD, SECONDS)
        assert name in str(caught.value)


def test_link_tries_every_address_of_a_name(monkeypatch):
    """An address at which nobody answers takes its share of the time and not all of it."""

    def look_up(host, port, *rest, **more):
        return [(2, 1, 6, "", ("127.0.0.1", free_port())), (2, 1, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(_opening.socket, "getaddrinfo", look_up)
    with FakeAgent(lambda conversation: conversation.welcome()) as agent:
        opened = open_link(endpoint(agent.port), KeyPair.generate(), accept_any, PAYLOAD, SECONDS)
        opened.sock.close()
    assert opened.key == agent.key.public


def test_link_shows_nothing_to_a_key_it_refuses():
    """Where the key is refused the agent has seen the preface and an ephemeral key, and nothing that is ours."""
    checked = []

    def refuse(key, certificate):
        checked.append((key, certificate))
        raise UntrustedAgent("another key")

    key = KeyPair.generate()
    peer: Peer

    def answer(sock):
        responder = Responder(key, AgentPayload(certificate=b"shown").encode())
        while not (reply := responder.data_to_send()):
            data = sock.recv(4096)
            peer.seen += data
            responder.receive_data(data)
        sock.sendall(reply)
        peer.read_all(sock)

    ours = KeyPair.generate()
    with Peer(answer) as peer:
        with pytest.raises(UntrustedAgent):
            open_link(endpoint(peer.port), ours, refuse, PAYLOAD, SECONDS)
        gevent.sleep(0.02)
        seen = peer.seen
    assert checked == [(key.public, b"shown")]
    assert ours.public not in seen
    responder = Responder(KeyPair.generate(), b"")
    assert responder.receive_data(seen) is None, "exactly preface and message 1: one byte more would raise"
    assert responder.data_to_send()


def test_link_sends_nothing_between_message_3_and_the_welcome():
    """A request that waits does not go before the agent has let the controller in."""
    early = []

    def wait_before_welcome(conversation):
        conversation.sock.settimeout(0.1)
        with suppress(TimeoutError):
            early.append(conversation.sock.recv(4096))
        conversation.sock.settimeout(None)
        conversation.open()
        request = conversation.request()
        conversation.answer(request.channel, ExecResult(0))
        serve_quietly_on(conversation)

    with FakeAgent(wait_before_welcome) as agent:
        client = client_of(agent.port)
        assert client.run(["true"]).exit == 0
        client._connection.drop()
    assert early == []


def serve_quietly_on(conversation):
    while True:
        conversation.read()


def test_link_denied_shows_the_line_to_type():
    """The error holds the command that lets this very key in."""
    identity = new_identity()
    with FakeAgent(lambda conversation: conversation.deny()) as agent, pytest.raises(NotAuthorized) as caught:
        client_of(agent.port, identity).connect()
    line = format_public(identity.keypair.public, identity.comment)
    assert str(caught.value).endswith(f"pyinfra-agent authorize '{line}'")


@pytest.mark.parametrize("status", ["resumed", "unknown", "stale", "full"])
def test_link_welcomed_with_another_answer_is_an_error(status):
    with FakeAgent(lambda conversation: conversation.welcome(status)) as agent, pytest.raises(Unreachable) as caught:
        client_of(agent.port).connect()
    assert ("no room" in str(caught.value)) == (status == "full")


def test_link_welcomed_with_an_impossible_resume_point_is_an_error():
    """An agent that claims frames of a new session is refused with an OSError."""
    with FakeAgent(lambda conversation: conversation.welcome(received=7)) as agent, pytest.raises(Unreachable):
        client_of(agent.port).connect()


def test_link_after_which_records_are_refused_is_lost():
    """Bytes that do not verify cost the link."""

    def corrupt(conversation):
        conversation.open()
        conversation.request()
        conversation.sock.sendall(b"\x00\x20" + bytes(32))
        conversation.sock.recv(4096)

    told = []
    with FakeAgent(corrupt, lambda conversation: conversation.welcome("unknown")) as agent:
        client = client_of(agent.port, notify=told.append)
        with pytest.raises(OSError, match="no longer knows the session"):
            client.run(["true"])
    assert "a record was refused" in told[0]


def test_link_on_which_the_protocol_is_broken_ends_the_session():
    """A frame for a channel that was never opened is not resumed from."""

    def misbehave(conversation):
        conversation.open()
        conversation.request()
        frame = encode_header(FrameType.DATA, 0, 99, 1) + b"x"
        conversation.sock.sendall(conversation.transport.encrypt(frame))
        conversation.sock.recv(4096)

    told = []
    with FakeAgent(misbehave) as agent:
        client = client_of(agent.port, notify=told.append)
        with pytest.raises(OSError, match=r"broke the protocol.*not known"):
            client.run(["true"])
        assert agent.connections == 1
    assert told == []


def test_link_that_fails_inside_ends_with_an_error(monkeypatch):
    """A mistake of ours in the reader fails the request; it does not leave it waiting."""

    def answer(conversation):
        session = conversation.open()
        request = conversation.request()
        session.send_data(request.channel, b"x")
        conversation.flush()
        conversation.sock.recv(4096)

    with FakeAgent(answer) as agent:
        client = client_of(agent.port)
        client.connect()
        monkeypatch.setattr(client._connection._link, "_on_event", lambda event: 1 / 0)
        with pytest.raises(OSError, match="ZeroDivisionError"):
            client.run(["true"])


def test_link_that_falls_silent_is_lost(monkeypatch, told):
    """After three unanswered pings the link is lost, and the request is told why."""
    monkeypatch.setattr(_link, "_KEEPALIVE_SECONDS", (0.3, 0.02))

    def fall_silent(conversation):
        conversation.open()
        conversation.request()
        gevent.sleep(SECONDS)

    with FakeAgent(fall_silent, lambda conversation: conversation.welcome("unknown")) as agent:
        client = client_of(agent.port, notify=told.append)
        with pytest.raises(OSError, match="whether it has finished is not known"):
            client.run(["true"])
    assert "the agent was silent for" in told[0]


def test_link_of_a_frozen_process_is_not_lost(monkeypatch):
    """Time in which this process did not run is no silence of the agent's."""
    monkeypatch.setattr(_link, "_KEEPALIVE_SECONDS", (0.06, 0.02))
    with FakeAgent(serve_quietly) as agent:
        client = client_of(agent.port)
        client.connect()
        link = client._connection._link
        until(lambda: link._greenlets[2].started)
        gevent.sleep(0)
        time.sleep(0.5)  # as a prompt of pyinfra's does: nothing else runs
        gevent.sleep(0.1)
        assert client._connection._link is link
        client._connection.drop()


def test_link_pings_an_agent_that_is_idle(monkeypatch):
    """An idle link stays up for as long as the agent answers."""
    monkeypatch.setattr(_link, "_KEEPALIVE_SECONDS", (0.01, 0.01))
    pinged = []

    def answer_pings(conversation):
        conversation.open()
        while True:
            pinged.append(conversation.read())

    with FakeAgent(answer_pings) as agent:
        client = client_of(agent.port)
        client.connect()
        until(lambda: len(pinged) > 6)
        assert client.is_connected
        client._connection.drop()


def test_endpoint_is_written_as_people_write_it():
    assert str(Endpoint("web1", 7963)) == "web1:7963"
    assert str(Endpoint("2001:db8::1", 7963)) == "[2001:db8::1]:7963"


def test_not_an_agent_is_the_cause_of_the_error():
    with Peer(lambda sock: (sock.recv(1), sock.sendall(b"nonsense"), sock.recv(99))) as peer:
        with pytest.raises(Unreachable) as caught:
            open_link(endpoint(peer.port), KeyPair.generate(), accept_any, PAYLOAD, SECONDS)
        assert isinstance(caught.value.__cause__, NotAnAgent)


def test_data_of_both_streams_arrives_in_order():
    def answer(conversation):
        session = conversation.open()
        request = conversation.request()
        for number in range(100):
            session.send_data(request.channel, b"%d," % number, number % 2)
        conversation.answer(request.channel, ExecResult(3))
        serve_quietly_on(conversation)

    got = []
    with FakeAgent(answer) as agent:
        client = client_of(agent.port)
        ended = client.run(["x"], on_output=lambda stream, data: got.append((stream, data)))
        client._connection.drop()
    assert ended.exit == 3
    assert [int(data.strip(b",")) for _, data in got] == list(range(100))
    assert {stream for stream, _ in got} == {"stdout", "stderr"}


def test_link_that_is_flooded_leaves_the_others_their_turn():
    """An agent that never stops talking does not stop the greenlets of other hosts, and is not kept in memory."""
    stop = threading.Event()

    def flood(conversation):
        conversation.open()
        body = Ping(1).encode()
        pings = (encode_header(FrameType.PING, 0, 0, len(body)) + body) * 500
        # From a thread, with a socket that waits: greenlets of this process would take turns with the reader.
        plain = plain_socket.socket(fileno=os.dup(conversation.sock.fileno()))
        with plain, suppress(OSError):
            plain.settimeout(SECONDS)
            gevent.get_hub().threadpool.apply(send, (plain, conversation.transport, pings))

    def send(plain, transport, pings):
        while not stop.is_set():
            plain.sendall(transport.encrypt(pings))

    with FakeAgent(flood) as agent:
        client = client_of(agent.port)
        client.connect()
        end = threading.Timer(4, stop.set)  # or a test that fails would never end
        end.start()
        try:
            for _ in range(5):
                gevent.sleep(0.1)
            assert not stop.is_set()
        finally:
            stop.set()
            end.cancel()
            client._connection.drop()
