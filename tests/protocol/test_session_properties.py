"""What holds for a session however it is used."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyinfra_agent_protocol._constants import DATA_BODY_SHARED_BYTES, RECORD_PLAINTEXT_MAX_BYTES
from pyinfra_agent_protocol._errors import RemoteProtocolError
from pyinfra_agent_protocol._events import DataReceived, RequestReceived, ResultReceived
from pyinfra_agent_protocol._frames import FrameType, split_frames
from pyinfra_agent_protocol._messages import encode_request
from pyinfra_agent_protocol._session import Session, Side
from tests.protocol.helpers import COMMAND, SUCCESS, Wire, content, frame, opened, reproducible

STEPS = st.lists(
    st.sampled_from(["open", "open", "answer", "write up", "write down", "arrive up", "arrive down", "cut"]),
    max_size=150,
)


@reproducible(100)
@given(STEPS, st.integers(1, 4))
def test_connector_never_trips_the_limit_on_requests(steps, limit):
    """A connector that opens whenever it `can_open` is never refused, however results and links cross.

    The agent counts a request longer than the connector does, until its result is acknowledged.
    """
    wire = Wire(Session(Side.CONNECTOR, channels_max=limit), Session(Side.AGENT, channels_max=limit))
    running: list[int] = []
    done = 0

    def heard(events):
        nonlocal done
        running.extend(event.channel for event in events if isinstance(event, RequestReceived))
        done += sum(isinstance(event, ResultReceived) for event in events)

    for step in steps:
        if step == "open" and wire.connector.can_open:
            wire.connector.open(COMMAND)
        elif step == "answer" and running:
            wire.agent.send_result(running.pop(), SUCCESS)
        elif step.startswith("write"):
            wire.write(Side.CONNECTOR if step.endswith("up") else Side.AGENT)
        elif step.startswith("arrive"):
            heard(wire.deliver(Side.CONNECTOR if step.endswith("up") else Side.AGENT))
        elif step == "cut":
            for events in wire.cut(1, 1):
                heard(events)
            wire.resume()
    for events in wire.settle():
        heard(events)
    while running:
        wire.agent.send_result(running.pop(), SUCCESS)
    for events in wire.settle():
        heard(events)
    assert wire.connector.is_idle
    assert done == wire.connector._last_channel


@reproducible(60)
@given(st.data())
def test_splitting_a_stream_into_records_changes_no_event(data):
    """The same frames in one record or in many give the same events."""
    bodies = [frame(FrameType.OPEN, 1, encode_request(COMMAND))]
    bodies += [
        frame(FrameType.DATA, 1, body) for body in data.draw(st.lists(st.binary(min_size=1, max_size=9), max_size=9))
    ]
    cuts = sorted(data.draw(st.sets(st.integers(1, len(bodies)))) | {len(bodies)})
    whole, pieces = Session(Side.AGENT), Session(Side.AGENT)
    whole.attach(0)
    pieces.attach(0)
    events = whole.receive_record(b"".join(bodies))
    at = 0
    for cut in cuts:
        arrived = pieces.receive_record(b"".join(bodies[at:cut]))
        assert arrived == events[at:cut]
        at = cut
    assert pieces.received == whole.received == len(bodies)


@reproducible(100)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 90_000)), max_size=25))
def test_streams_arrive_whole_however_they_are_cut(pieces):
    """Three channels share the link; each one's bytes arrive in order, no record is too long."""
    wire = Wire()
    sent = {opened(wire): bytearray() for _ in range(3)}
    events = []
    for index, (which, size) in enumerate(pieces):
        channel = 1 + which
        body = bytes([index % 256]) * size
        sent[channel] += body
        wire.agent.send_data(channel, body)
        record = wire.write(Side.AGENT)
        if record is not None:
            assert len(record) <= RECORD_PLAINTEXT_MAX_BYTES
    events = wire.settle()[1]
    for channel, expected in sent.items():
        assert content(events, channel) == expected


@reproducible(60)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=40))
def test_small_channel_waits_for_one_piece_of_each_bulk_channel_at_most(busy):
    """However many channels send bulk, the small one's frame is at most one round behind."""
    wire = Wire()
    for _ in range(7):
        opened(wire)
    for count in busy:
        for channel in range(1, 1 + count):
            if wire.agent.sendable(channel):
                wire.agent.send_data(channel, bytes(wire.agent.sendable(channel)))
        wire.agent.next_record()
    wire.agent.send_data(7, b"small")
    ahead = 0
    while (record := wire.agent.next_record()) is not None:
        for entry in split_frames(record):
            if entry.kind is FrameType.DATA and entry.channel == 7:
                assert ahead <= 6 * DATA_BODY_SHARED_BYTES
                return
            ahead += len(entry.body)
    raise AssertionError("the small channel was never served")


BYTES = st.binary(max_size=24)
BODIES = st.one_of(
    BYTES, st.just(encode_request(COMMAND)), st.just(SUCCESS.encode()), st.just(b"\x80"), st.just(bytes(8))
)


@reproducible(300)
@given(
    st.sampled_from(Side),
    st.lists(st.tuples(st.sampled_from(FrameType), st.integers(0, 3), BODIES) | BYTES, max_size=8),
)
def test_any_record_is_taken_or_ends_the_session(side, parts):
    """Whatever a peer sends, the answer is events or a documented error, never another exception."""
    wire = Wire()
    opened(wire)
    opened(wire)
    record = b"".join(part if isinstance(part, bytes) else frame(*part) for part in parts)
    session = wire.session(side)
    try:
        events = session.receive_record(record)
    except RemoteProtocolError:
        while session.has_data_to_send:
            assert [entry.kind for entry in split_frames(session.next_record())] == [FrameType.GOODBYE]
        session.close()
        return
    assert sum(len(event.data) for event in events if isinstance(event, DataReceived)) <= len(record)
    while session.has_data_to_send:
        assert session.next_record()
