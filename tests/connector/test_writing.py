"""Writing to a link at once, by whoever is about to wait for an answer, beside the writer's own turns."""

from __future__ import annotations

import errno
import socket as plain_socket

import gevent
import pytest
from gevent import socket

from pyinfra_agent_connector._link import Link
from pyinfra_agent_connector._opening import Opened
from pyinfra_agent_protocol import (
    DataReceived,
    Info,
    Initiator,
    Put,
    RequestReceived,
    Responder,
    Session,
    Side,
    Stat,
    Welcome,
)
from pyinfra_agent_protocol.keys import KeyPair
from tests.connector.helpers import SECONDS, until


class Pair:
    """A link whose greenlets run, and the agent's end of its socket."""

    def __init__(self) -> None:
        initiator, responder = Initiator(KeyPair.generate()), Responder(KeyPair.generate(), b"")
        responder.receive_data(initiator.data_to_send())
        initiator.receive_data(responder.data_to_send())
        message, transport = initiator.finish(b"")
        responder.receive_data(message)
        self.transport = transport
        self._agent_transport = responder.transport()
        ours, self.theirs = socket.socketpair()
        self.session, self._agent_session = Session(Side.CONNECTOR), Session(Side.AGENT)
        self.session.attach(0)
        self._agent_session.attach(0)
        self.lost: list[tuple[str, bool]] = []
        self.rooms = 0
        self.link = Link(
            Opened(ours, transport, b"", Welcome("new", 0, 8, 60), []),
            self.session,
            lambda event: None,
            self._note_room,
            lambda reason, broken: self.lost.append((reason, broken)),
        )
        self.link.start()
        gevent.sleep(0)  # the writer waits

    def _note_room(self) -> None:
        self.rooms += 1

    def read(self) -> list[object]:
        """Return what has arrived at the agent by now, letting nobody else run."""
        events: list[object] = []
        while True:
            try:
                data = plain_socket.socket.recv(self.theirs._sock, 1 << 20, plain_socket.MSG_DONTWAIT)
            except BlockingIOError:
                return events
            if not data:
                return events
            for record in self._agent_transport.receive_data(data):
                events += self._agent_session.receive_record(record)


@pytest.fixture
def pair():
    pair = Pair()
    yield pair
    pair.link.close()
    pair.theirs.close()


def names(events):
    return [event.request.NAME for event in events if isinstance(event, RequestReceived)]


def test_request_is_written_before_anybody_else_runs(pair):
    pair.session.open(Info())
    pair.link.wake_writer()
    rooms = pair.rooms
    pair.link.write_now()
    assert names(pair.read()) == ["info"]
    assert pair.rooms == rooms + 1


def test_writer_does_not_write_it_again(pair):
    pair.session.open(Info())
    pair.link.wake_writer()
    pair.link.write_now()
    pair.session.open(Stat(b"/"))
    pair.link.wake_writer()
    gevent.sleep(0)
    assert names(pair.read()) == ["info", "stat"]
    assert pair.lost == []


def test_nothing_to_write_is_nothing(pair):
    pair.link.write_now()
    gevent.sleep(0)
    assert pair.read() == []
    assert pair.lost == []


def test_what_the_socket_does_not_take_is_the_writers_and_stays_in_order(pair):
    """Meanwhile the writer waits for the socket, and nobody may write between the halves of a record."""
    pair.link._sock.setsockopt(plain_socket.SOL_SOCKET, plain_socket.SO_SNDBUF, 4096)
    content = bytes(range(256)) * 400
    channel = pair.session.open(Put(b"/x"))
    pair.session.send_data(channel, content)
    pair.link.wake_writer()
    pair.link.write_now()
    events: list[object] = []
    assert pair.link._rest
    gevent.sleep(0)
    pair.session.open(Info())
    pair.link.wake_writer()
    pair.link.write_now()

    def all_arrived() -> bool:
        events.extend(pair.read())
        return "info" in names(events)

    until(all_arrived)
    received = b"".join(event.data for event in events if isinstance(event, DataReceived))
    assert content.startswith(received)
    assert len(received) >= 64 * 1024
    assert names(events) == ["put", "info"]
    assert pair.lost == []


def test_closed_connection_is_the_writers_to_report(pair):
    pair.theirs.close()
    pair.session.open(Info())
    pair.link.wake_writer()
    pair.link.write_now()
    until(lambda: pair.lost)
    pair.link.write_now()
    assert len(pair.lost) == 1
    assert not pair.lost[0][1]


def test_reset_connection_raises_nothing(pair, monkeypatch):
    def reset(*args):
        raise ConnectionResetError(errno.ECONNRESET, "reset")

    monkeypatch.setattr("pyinfra_agent_connector._link.os.write", reset)
    pair.session.open(Info())
    pair.link.write_now()
    assert pair.link._rest  # for the writer, which will see
    assert pair.lost == []


@pytest.mark.parametrize(("error", "broken"), [(ZeroDivisionError, True), (KeyboardInterrupt, False)])
def test_failure_between_encrypting_and_writing_costs_the_link(pair, monkeypatch, error, broken):
    """The agent would miss a record: the session may go on, on another link, unless the fault is ours."""

    def fail(plaintexts):
        next(iter(plaintexts))
        raise error

    monkeypatch.setattr(pair.transport, "encrypt_records", fail)
    pair.session.open(Info())
    with gevent.Timeout(SECONDS):
        if broken:
            pair.link.write_now()
        else:
            with pytest.raises(KeyboardInterrupt):
                pair.link.write_now()
    assert [lost[1] for lost in pair.lost] == [broken]
    assert pair.link.is_lost
