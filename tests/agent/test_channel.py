"""One request's streams between its handler and its session."""

from __future__ import annotations

import pytest
import trio

from pyinfra_agent._channel import RequestCancelled, RequestChannel, SessionEnded
from pyinfra_agent_protocol import (
    QUEUE_MAX_BYTES,
    DataReceived,
    Info,
    Resize,
    ResizeReceived,
    Session,
    Side,
    Signal,
    SignalReceived,
    StreamEnded,
)


class Fixture:
    def __init__(self) -> None:
        self.connector, self.agent = Session(Side.CONNECTOR), Session(Side.AGENT)
        self.connector.attach(0)
        self.agent.attach(0)
        number = self.connector.open(Info())
        self.agent.receive_record(self.connector.next_record() or b"")
        self.wakes = 0
        self.channel = RequestChannel(number, self.agent, self.wake, self.wake)

    def wake(self) -> None:
        self.wakes += 1


@pytest.fixture
def side():
    return Fixture()


def data(content, number=1):
    return DataReceived(number, 0, content)


async def test_receive_returns_all_that_is_there_and_then_the_end(side):
    side.channel.put_data(data(b"a"))
    side.channel.put_data(data(b"b"))
    assert await side.channel.receive() == [b"a", b"b"]
    side.channel.put_data(data(b"c"))
    side.channel.put_end(StreamEnded(1, 3, b"1234"))
    assert await side.channel.receive() == [b"c"]
    assert await side.channel.receive() == []
    assert side.channel.ended.size == 3


async def test_receive_waits_for_data(side, nursery):
    received = []

    async def receive():
        received.append(await side.channel.receive())

    nursery.start_soon(receive)
    await trio.testing.wait_all_tasks_blocked()
    assert received == []
    side.channel.put_data(data(b"a"))
    await trio.testing.wait_all_tasks_blocked()
    assert received == [[b"a"]]


@pytest.mark.parametrize(("how", "error"), [("cancel", RequestCancelled), ("end_session", SessionEnded)])
async def test_receive_ends_when_nothing_more_will_come(side, nursery, how, error):
    outcome = []

    async def receive():
        with pytest.raises(error):
            await side.channel.receive()
        outcome.append(error)

    nursery.start_soon(receive)
    await trio.testing.wait_all_tasks_blocked()
    getattr(side.channel, how)()
    await trio.testing.wait_all_tasks_blocked()
    assert outcome == [error]
    assert side.channel.cancelled.is_set()


async def test_data_that_came_before_the_cancel_is_still_received(side):
    side.channel.put_data(data(b"a"))
    side.channel.cancel()
    assert await side.channel.receive() == [b"a"]
    with pytest.raises(RequestCancelled):
        await side.channel.receive()


async def test_cancelled_receive_loses_no_data(side):
    with trio.move_on_after(0):
        await side.channel.receive()
    side.channel.put_data(data(b"a"))
    with trio.CancelScope() as scope:
        scope.cancel()
        await side.channel.receive()
    assert await side.channel.receive() == [b"a"]


async def test_send_waits_while_the_queue_is_full_and_goes_on_when_there_is_room(side, nursery):
    sent = []

    async def send():
        await side.channel.send(b"x" * 2 * QUEUE_MAX_BYTES)
        sent.append(True)

    nursery.start_soon(send)
    await trio.testing.wait_all_tasks_blocked()
    assert sent == []
    assert side.wakes
    queued = side.agent._channels[1].queued_bytes
    assert queued <= QUEUE_MAX_BYTES + 65536
    for _ in range(100):
        record = side.agent.next_record()
        if record is None:
            break
        for event in side.connector.receive_record(record):
            side.connector.consume(1, len(event.data))
        if (answer := side.connector.next_record()) is not None:
            side.agent.receive_record(answer)
        side.channel.note_room()
        await trio.testing.wait_all_tasks_blocked()
    assert sent == [True]


async def test_send_that_waits_ends_with_the_session_and_the_rest_is_thrown_away(side, nursery):
    sent = []

    async def send():
        await side.channel.send(b"x" * 4 * QUEUE_MAX_BYTES)
        sent.append(True)

    nursery.start_soon(send)
    await trio.testing.wait_all_tasks_blocked()
    side.agent.close()
    side.channel.end_session()
    await trio.testing.wait_all_tasks_blocked()
    assert sent == [True]
    await side.channel.send(b"more")


async def test_controls_that_came_before_the_listener_are_heard_in_order(side):
    signal, size = SignalReceived(1, Signal(15)), ResizeReceived(1, Resize(2, 3))
    side.channel.put_control(signal)
    side.channel.put_control(size)
    heard: list = []
    side.channel.listen(heard.append)
    side.channel.put_control(signal)
    assert heard == [signal, size, signal]


async def test_controls_that_nobody_hears_yet_are_bounded_and_no_signal_is_lost(side):
    term = SignalReceived(1, Signal(15))
    side.channel.put_control(term)
    for number in range(1000):
        side.channel.put_control(ResizeReceived(1, Resize(1, number + 1)))
        side.channel.put_control(SignalReceived(1, Signal(28)))
    heard: list = []
    side.channel.listen(heard.append)
    assert heard == [term, ResizeReceived(1, Resize(1, 1000)), SignalReceived(1, Signal(28))]


async def test_cancel_and_loss_are_told_apart_in_either_order(side):
    side.channel.end_session()
    assert side.channel.session_ended


async def test_request_that_was_cancelled_stays_so_when_its_session_ends(side):
    """Or a command that somebody stopped with Ctrl-C would live on if the controller left at once."""
    side.channel.cancel()
    side.channel.end_session()
    assert not side.channel.session_ended
