"""A channel's two tables: each pair of state and frame is listed, or refused on both sides."""

from __future__ import annotations

import itertools

import pytest

from pyinfra_agent_protocol._channel import DOWN, UP, Channel, Half, step
from pyinfra_agent_protocol._errors import FrameInvalid, LocalProtocolError, RemoteProtocolError
from pyinfra_agent_protocol._frames import FrameType, encode_counter
from pyinfra_agent_protocol._messages import Cancel, End, ExecResult, Refusal, Resize, Signal
from pyinfra_agent_protocol._session import Session, Side
from pyinfra_agent_protocol._window import Budget
from tests.protocol.helpers import COMMAND, SUCCESS, Wire, frame, opened

GOLDEN = """
up         OPEN     DATA     END      RESULT   REFUSED  SIGNAL   RESIZE   CANCEL
flowing    -        flowing  ended    -        -        flowing  flowing  flowing
ended      -        -        -        -        -        ended    ended    ended
closed     -        closed   closed   -        -        closed   closed   closed

down       OPEN     DATA     END      RESULT   REFUSED  SIGNAL   RESIZE   CANCEL
flowing    -        flowing  -        closed   closed   -        -        -
ended      -        -        -        -        -        -        -        -
closed     -        -        -        -        -        -        -        -
"""

NUMBERED = [kind for kind in FrameType if kind < 16]


def drawn(name, table):
    """Draw a table as text, by asking `step` for every pair."""

    def cell(half, kind):
        try:
            return step(table, half, kind).value
        except FrameInvalid:
            return "-"

    lines = [[name, *(kind.name for kind in NUMBERED)]]
    lines += [[half.value, *(cell(half, kind) for kind in NUMBERED)] for half in Half]
    return "\n".join("".join([first.ljust(11), *(word.ljust(9) for word in rest)]).rstrip() for first, *rest in lines)


def test_tables_are_those_drawn_here():
    assert f"\n{drawn('up', UP)}\n\n{drawn('down', DOWN)}\n" == GOLDEN


@pytest.mark.parametrize("table", [UP, DOWN], ids=["up", "down"])
def test_frames_about_the_link_are_no_step_of_a_channel(table):
    for half, kind in itertools.product(Half, set(FrameType) - set(NUMBERED)):
        with pytest.raises(FrameInvalid, match=f"{kind.name} on a channel that is {half.value}"):
            step(table, half, kind)


BODIES = {
    FrameType.DATA: b"x",
    FrameType.END: End().encode(),
    FrameType.RESULT: SUCCESS.encode(),
    FrameType.REFUSED: Refusal("failed", "").encode(),
    FrameType.SIGNAL: Signal(15).encode(),
    FrameType.RESIZE: Resize(1, 1).encode(),
    FrameType.CANCEL: Cancel().encode(),
}

ACTS = {
    FrameType.DATA: lambda session: session.send_data(1, b"x"),
    FrameType.END: lambda session: session.send_end(1),
    FrameType.RESULT: lambda session: session.send_result(1, ExecResult(0)),
    FrameType.REFUSED: lambda session: session.send_refusal(1, "failed", ""),
    FrameType.SIGNAL: lambda session: session.send_signal(1, 15),
    FrameType.RESIZE: lambda session: session.send_resize(1, 1, 1),
    FrameType.CANCEL: lambda session: session.send_cancel(1),
}

# Closed is left out: the sender knows that nothing may follow, the receiver lets late frames in (below).
# Down is never half closed, for it has no END.
LIVE = [(Side.CONNECTOR, Half.FLOWING), (Side.CONNECTOR, Half.ENDED), (Side.AGENT, Half.FLOWING)]


@pytest.mark.parametrize("kind", ACTS)
@pytest.mark.parametrize(("side", "half"), LIVE)
def test_sender_and_receiver_are_held_to_the_same_table(side, half, kind):
    """What one side cannot say, the other does not accept, in every state of the direction."""
    table = UP if side is Side.CONNECTOR else DOWN
    legal = (half, kind) in table
    wire = Wire()
    opened(wire)
    speaker, listener = (wire.connector, wire.agent) if side is Side.CONNECTOR else (wire.agent, wire.connector)
    if half is Half.ENDED:
        speaker.send_end(1)
        wire.settle()
    if legal:
        ACTS[kind](speaker)
        at_agent, at_connector = wire.settle()
        assert len(at_agent + at_connector) == 1
    else:
        with pytest.raises(LocalProtocolError):
            ACTS[kind](speaker)
        with pytest.raises(RemoteProtocolError):
            listener.receive_record(frame(kind, 1, BODIES[kind]))


@pytest.mark.parametrize("kind", [kind for half, kind in UP if half is Half.CLOSED])
def test_agent_drops_frames_that_were_under_way_when_it_answered(kind):
    agent = Session(Side.AGENT)
    agent.attach(0)
    connector = Session(Side.CONNECTOR)
    connector.attach(0)
    connector.open(COMMAND)
    agent.receive_record(connector.next_record())
    agent.send_result(1, SUCCESS)
    assert agent.receive_record(frame(kind, 1, BODIES[kind])) == []
    agent.next_record()
    agent.receive_record(frame(FrameType.ACK, 0, encode_counter(1)))
    assert agent.receive_record(frame(kind, 1, BODIES[kind])) == []


@pytest.mark.parametrize("kind", [FrameType.DATA, FrameType.RESULT, FrameType.REFUSED])
def test_connector_refuses_frames_after_the_last_one(kind):
    wire = Wire()
    opened(wire)
    wire.agent.send_result(1, SUCCESS)
    wire.settle()
    with pytest.raises(FrameInvalid):
        wire.connector.receive_record(frame(kind, 1, BODIES[kind]))


def test_channel_gives_its_window_back_when_it_closes():
    budget = Budget(1 << 30)
    channel = Channel(1, budget)
    window = channel.receive_window
    window.receive(window.limit)
    window.receive_blocked(window.limit)
    window.consume(window.received)
    assert budget.reserved_bytes
    channel.close()
    assert (channel.up, channel.down, budget.reserved_bytes) == (Half.CLOSED, Half.CLOSED, 0)
