"""A request in progress."""

from __future__ import annotations

import gevent
import pytest

from pyinfra_agent_connector._call import Call
from pyinfra_agent_connector._errors import ConnectionLost
from pyinfra_agent_protocol import Exec, ExecResult
from tests.connector.helpers import FakeAgent, client_of, until

COMMAND = Exec(argv=(b"true",), stdin=True)
MEBIBYTE = 1024 * 1024


def flood_when_cancelled(conversation):
    """Send four mebibytes on each channel whatever happens to it, then its answer."""
    session = conversation.open()
    while True:
        channel = conversation.request().channel
        left = 4 * MEBIBYTE
        while left:
            if room := session.sendable(channel):
                session.send_data(channel, bytes(min(room, left, 65_280)))
                left -= min(room, left, 65_280)
                conversation.flush()
            else:
                conversation.read()
        conversation.answer(channel, ExecResult(0))


def test_call_that_was_left_has_its_data_consumed():
    """Nobody reads it any more, and the agent can still send all of it: its window never sticks."""
    with FakeAgent(flood_when_cancelled) as agent:
        client = client_of(agent.port)
        for _ in range(3):
            with client._connection.call(COMMAND, "the command"):
                pass
            until(lambda: not client._connection._calls)
        assert client.is_connected
        client._connection.drop()


def test_call_that_is_not_read_holds_the_sender_back():
    """What was not taken stays within the window: memory is bounded by it."""
    with FakeAgent(flood_when_cancelled) as agent:
        client = client_of(agent.port)
        with client._connection.call(COMMAND, "the command") as call:
            until(lambda: call._inbox)
            gevent.sleep(0.1)
            assert sum(len(event.data) for event in call._inbox) <= MEBIBYTE, "of four"
            total = 0
            while events := call.receive():
                total += sum(len(event.data) for event in events)
            assert total == 4 * MEBIBYTE
            assert call.result() == ExecResult(0)
        client._connection.drop()


def test_call_result_throws_data_away():
    with FakeAgent(flood_when_cancelled) as agent:
        client = client_of(agent.port)
        with client._connection.call(COMMAND, "the command") as call:
            assert call.result() == ExecResult(0)
        client._connection.drop()


def test_call_send_waits_for_the_agent_and_ends_with_the_answer():
    """A sender is held back by the agent's window, and let go when the answer makes it pointless."""
    go_on = gevent.event.Event()

    def take_nothing(conversation):
        conversation.open()
        channel = conversation.request().channel
        while not go_on.is_set():
            with gevent.Timeout(0.02, False):
                conversation.read(consume=False)
        conversation.answer(channel, ExecResult(0))
        conversation.read()

    with FakeAgent(take_nothing) as agent:
        client = client_of(agent.port)
        with client._connection.call(COMMAND, "the command") as call:
            sender = gevent.spawn(call.send, bytes(8 * MEBIBYTE))
            gevent.sleep(0.1)
            assert not sender.ready()
            queued = client._connection._session._channels[call.channel].queued_bytes
            assert queued <= 512 * 1024, "what waits is bounded"
            go_on.set()
            assert sender.get(timeout=5) is False
            assert call.is_over
            call.end()
            call.cancel()
            call.signal(15)
            call.resize(1, 1)
        client._connection.drop()


def test_call_whose_connection_is_dropped_raises_and_wakes_senders():
    with FakeAgent(lambda conversation: (conversation.open(), conversation.request(), gevent.sleep(5))) as agent:
        client = client_of(agent.port)
        with client._connection.call(COMMAND, "the command") as call:
            sender = gevent.spawn(call.send, bytes(8 * MEBIBYTE))
            gevent.sleep(0.02)
            client._connection.drop("it was dropped")
            assert sender.get(timeout=1) is False
            with pytest.raises(ConnectionLost, match="it was dropped"):
                call.result()


class _Windows:
    def __init__(self):
        self.consumed = []

    def consume(self, channel, count):
        self.consumed.append((channel, count))


def test_call_after_its_error_opens_no_window():
    """The connection may have another session by then, and this number there is another request."""
    from pyinfra_agent_protocol import DataReceived

    windows = _Windows()
    call = Call(windows, 1, "the command")
    call.put_data(DataReceived(1, 0, b"abc"))
    assert len(call.receive()) == 1
    assert windows.consumed == [(1, 3)]
    call.put_data(DataReceived(1, 0, b"defg"))
    call.put_error(ConnectionLost("gone"))
    assert len(call.receive()) == 1, "what had arrived is still given out"
    assert windows.consumed == [(1, 3)]
    with pytest.raises(ConnectionLost):
        call.result()
