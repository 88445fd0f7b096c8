"""Input on its way to a command, while the command may or may not take it."""

from __future__ import annotations

import gevent
import pytest
from gevent.event import Event

from pyinfra_agent_connector._errors import AgentError
from pyinfra_agent_connector._feeder import Feeder
from pyinfra_agent_protocol import DATA_BODY_BYTES
from tests.connector.helpers import until


class FakeCall:
    """A call that takes what it is sent while it has `room`, and the answer to which comes by `finish`."""

    what = "the command"

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.is_ended = self.is_cancelled = self.is_over = False
        self.room = Event()
        self.room.set()

    def send(self, data: bytes) -> bool:
        self.room.wait()
        if not self.is_over:
            self.sent.append(data)
        return not self.is_over

    def end(self) -> None:
        assert not self.is_cancelled
        self.is_ended = True

    def cancel(self) -> None:
        self.is_cancelled = True

    def finish(self) -> None:
        self.is_over = True
        self.room.set()


def settle():
    """Let every greenlet run until it waits."""
    for _ in range(10):
        gevent.sleep(0)


@pytest.fixture
def call():
    return FakeCall()


@pytest.mark.parametrize("stdin", [None, b"", b"short"])
def test_feeder_sends_a_little_before_anything_else_runs(stdin, call):
    """What fits the first flight is sent without a greenlet."""
    Feeder.start(call, b"", stdin)
    assert call.sent == ([stdin] if stdin else [])
    assert call.is_ended is (stdin is not None)


def test_feeder_sends_a_script_before_the_input(call):
    """The agent takes the script off the front of what comes."""
    Feeder.start(call, b"s" * 100_000, iter([b"in"]))
    until(lambda: call.is_ended)
    assert call.sent == [b"s" * 100_000, b"in"]


def test_feeder_joins_items_that_are_made_faster_than_they_are_sent(call):
    """A million short lines are no million messages, and arrive in their order."""
    items = [b"%d\n" % number for number in range(50_000)]
    Feeder.start(call, b"", iter(items))
    until(lambda: call.is_ended)
    assert b"".join(call.sent) == b"".join(items)
    assert len(call.sent) < 10


def test_feeder_keeps_no_item_back_until_the_next_one_is_made(call):
    """Items may depend on what the command made of those before."""
    answered = Event()

    def items():
        yield b"first"
        answered.wait()
        yield b"second"

    Feeder.start(call, b"", items())
    until(lambda: call.sent == [b"first"])
    assert not call.is_ended
    answered.set()
    until(lambda: call.is_ended)
    assert call.sent == [b"first", b"second"]


def test_feeder_makes_few_items_ahead_of_a_command_that_does_not_read(call):
    """An endless source costs one message's worth, and is left when the command is over."""
    made = 0

    def items():
        nonlocal made
        while True:
            made += 1
            yield b"x" * 1000

    call.room.clear()
    feeder = Feeder.start(call, b"", items())
    settle()
    assert 1000 * made <= 2 * (DATA_BODY_BYTES + 1000)
    call.finish()
    settle()
    feeder.stop()
    feeder.check()
    before = made
    settle()
    assert made == before
    assert not call.is_ended


@pytest.mark.parametrize("error", [ValueError("no more"), gevent.Timeout(1)], ids=["ValueError", "Timeout"])
def test_feeder_cancels_the_command_whose_input_cannot_be_made(error, call):
    """Half of an input must not look like all of it; the error is an OSError that says so."""

    def items():
        yield b"half"
        raise error

    feeder = Feeder.start(call, b"", items())
    until(lambda: call.is_cancelled)
    feeder.stop()
    assert not call.is_ended
    with pytest.raises(AgentError, match="the input of the command could not be read, and it was cancelled"):
        feeder.check()


def test_feeder_raises_an_oserror_of_the_source_as_it_is(call):
    """It has a line for the user already."""

    def items():
        yield b"half"
        raise PermissionError(13, "not yours")

    feeder = Feeder.start(call, b"", items())
    until(lambda: call.is_cancelled)
    with pytest.raises(PermissionError, match="not yours"):
        feeder.check()
