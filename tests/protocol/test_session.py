"""A session's methods, its documented errors, and what each side may be sent."""

from __future__ import annotations

import pytest

from pyinfra_agent_protocol._constants import (
    ACK_EVERY_BYTES,
    ACK_EVERY_FRAMES,
    ACK_IDLE_BYTES,
    CHANNEL_ID_MAX,
    DATA_BODY_BYTES,
    DATA_BODY_SHARED_BYTES,
    QUEUE_MAX_BYTES,
    RECORD_PLAINTEXT_MAX_BYTES,
    WINDOW_INITIAL_BYTES,
    WINDOW_OPEN_BYTES,
)
from pyinfra_agent_protocol._digest import DIGEST_BYTES
from pyinfra_agent_protocol._errors import (
    FrameInvalid,
    LocalProtocolError,
    MessageInvalid,
    RemoteProtocolError,
    ResumeInvalid,
    WindowExceeded,
)
from pyinfra_agent_protocol._events import (
    CancelReceived,
    DataReceived,
    GoodbyeReceived,
    PongReceived,
    RefusalReceived,
    RequestReceived,
    ResizeReceived,
    ResultReceived,
    SignalReceived,
    StreamEnded,
)
from pyinfra_agent_protocol._frames import FrameType, decode_counter, encode_counter, split_frames
from pyinfra_agent_protocol._messages import (
    Cancel,
    End,
    Exec,
    ExecResult,
    Get,
    GetResult,
    Goodbye,
    Ping,
    Put,
    Refusal,
    Resize,
    Signal,
    decode_request,
    encode_request,
)
from pyinfra_agent_protocol._session import Session, Side
from pyinfra_agent_protocol._window import Budget
from tests.protocol.helpers import COMMAND, SUCCESS, Wire, content, frame, frames, kinds, opened


@pytest.fixture
def wire():
    return Wire()


def acknowledged(record):
    """Return what a record's ACK says, or None if it has none."""
    return next((decode_counter(ack) for ack in frames(record, FrameType.ACK)), None)


# --- one request ---


def test_connector_and_agent_exchange_a_request_its_streams_and_its_result(wire):
    """Both ends see each message once, in order, as the same values."""
    request = Exec((b"cat",), stdin=True)
    channel = wire.connector.open(request)
    wire.connector.send_data(channel, b"in")
    wire.connector.send_end(channel, size=2, digest=bytes(DIGEST_BYTES))
    assert wire.settle() == (
        [RequestReceived(1, request), DataReceived(1, 0, b"in"), StreamEnded(1, 2, bytes(DIGEST_BYTES))],
        [],
    )
    wire.agent.send_data(channel, b"out")
    wire.agent.send_data(channel, b"err", stream=1)
    wire.agent.send_result(channel, ExecResult(3))
    assert wire.settle() == (
        [],
        [DataReceived(1, 0, b"out"), DataReceived(1, 1, b"err"), ResultReceived(1, ExecResult(3))],
    )


def test_request_and_result_take_one_record_each(wire):
    wire.connector.open(COMMAND)
    wire.agent.receive_record(wire.connector.next_record())
    assert wire.connector.next_record() is None
    wire.agent.send_data(1, b"out")
    wire.agent.send_result(1, SUCCESS)
    assert kinds(wire.agent.next_record()) == [FrameType.ACK, FrameType.DATA, FrameType.RESULT]
    assert wire.agent.next_record() is None


def test_agent_receives_signals_resizes_and_cancel(wire):
    opened(wire)
    wire.connector.send_signal(1, 2)
    wire.connector.send_resize(1, 25, 81)
    wire.connector.send_cancel(1)
    assert wire.settle() == (
        [SignalReceived(1, Signal(2)), ResizeReceived(1, Resize(25, 81)), CancelReceived(1)],
        [],
    )


def test_connector_receives_a_refusal_and_the_channel_is_closed(wire):
    opened(wire)
    wire.agent.send_refusal(1, "not-found", "no such file")
    assert wire.settle() == ([], [RefusalReceived(1, Refusal("not-found", "no such file"))])
    assert not wire.connector.is_open(1)
    assert not wire.agent.is_open(1)


def test_result_is_read_as_the_type_that_belongs_to_the_request(wire):
    opened(wire, Get(b"f"))
    wire.agent.send_result(1, GetResult(0, bytes(DIGEST_BYTES)))
    assert wire.settle() == ([], [ResultReceived(1, GetResult(0, bytes(DIGEST_BYTES)))])
    opened(wire, Get(b"f"))
    with pytest.raises(MessageInvalid, match="get-result: size is missing"):
        wire.connector.receive_record(frame(FrameType.RESULT, 2, SUCCESS.encode()))


def test_refusal_that_quotes_a_name_which_is_not_utf8_is_still_sent(wire):
    opened(wire)
    wire.agent.send_refusal(1, "not-found", "no file caf\udce9" + "x" * 5000)
    _, (event,) = wire.settle()
    assert event.refusal.text.startswith("no file caf\\udce9x")
    assert len(event.refusal.text) == 4096


def test_agent_refuses_an_unknown_request_and_the_session_lives_on(wire):
    """A request of a newer connector is refused by name; its late frames are dropped."""
    wire.agent.receive_record(frame(FrameType.OPEN, 1, b"\x81\xa7request\xa6reboot"))
    wire.agent.receive_record(frame(FrameType.DATA, 1, b"x"))
    (refused,) = frames(wire.agent.next_record(), FrameType.REFUSED)
    refusal = Refusal.decode(refused.body)
    assert refusal.code == "bad-request"
    assert "'reboot' is unknown" in refusal.text
    assert wire.agent.receive_record(frame(FrameType.OPEN, 2, encode_request(COMMAND))) == [RequestReceived(2, COMMAND)]


# --- links ---


def test_session_without_a_link_sends_and_receives_nothing():
    session = Session(Side.CONNECTOR)
    session.open(COMMAND)
    assert not session.is_attached
    assert not session.has_data_to_send
    assert session.next_record() is None
    with pytest.raises(LocalProtocolError, match="no link"):
        session.receive_record(b"")


def test_attach_refuses_a_second_link(wire):
    with pytest.raises(LocalProtocolError, match="has a link"):
        wire.agent.attach(0)


def test_closed_session_refuses_a_link_and_gives_its_windows_back():
    agent_budget = Budget(1 << 30)
    wire = Wire(agent=Session(Side.AGENT, budget=Budget(1 << 30, agent_budget)))
    opened(wire)
    wire.connector.send_data(1, bytes(8 * WINDOW_INITIAL_BYTES))
    wire.settle()
    assert agent_budget.reserved_bytes
    wire.agent.close()
    assert agent_budget.reserved_bytes == 0
    with pytest.raises(LocalProtocolError, match="is over"):
        wire.agent.attach(0)
    wire.connector.close()
    with pytest.raises(LocalProtocolError, match="living session"):
        wire.connector.open(COMMAND)


def test_session_is_idle_when_a_lost_link_would_lose_nothing(wire):
    """The agent's is not before its last result is acknowledged."""
    assert wire.connector.is_idle
    opened(wire)
    assert not wire.connector.is_idle
    assert not wire.agent.is_idle
    wire.agent.send_result(1, SUCCESS)
    wire.settle()
    assert wire.connector.is_idle
    assert not wire.agent.is_idle
    wire.connector.send_ping(1)
    wire.settle()
    assert wire.agent.is_idle


# --- misuse of our own ---


@pytest.mark.parametrize(
    "act",
    [
        lambda session: session.send_data(9, b"x"),
        lambda session: session.send_end(9),
        lambda session: session.send_signal(9, 1),
        lambda session: session.send_resize(9, 1, 1),
        lambda session: session.send_cancel(9),
        lambda session: session.send_result(9, SUCCESS),
        lambda session: session.send_refusal(9, "failed", ""),
    ],
)
@pytest.mark.parametrize("side", Side)
def test_sending_on_a_channel_that_is_not_open_is_refused(wire, side, act):
    with pytest.raises(LocalProtocolError, match="channel 9 is not open"):
        act(wire.session(side))


def test_agent_opens_no_channel(wire):
    with pytest.raises(LocalProtocolError, match="only a connector"):
        wire.agent.open(COMMAND)


@pytest.mark.parametrize(
    "act",
    [
        lambda session: session.send_signal(1, 65),
        lambda session: session.send_resize(1, 0, 80),
        lambda session: session.send_end(1, size=-1),
        lambda session: session.send_data(1, b"x", stream=1),
    ],
    ids=["signal 65", "0 rows", "size -1", "second stream"],
)
def test_connector_does_not_send_what_would_end_the_session(wire, act):
    """A value that the agent must refuse is refused here, and changes nothing."""
    opened(wire)
    with pytest.raises(LocalProtocolError):
        act(wire.connector)
    wire.connector.send_end(1)
    assert wire.settle() == ([StreamEnded(1, None, None)], [])


def test_agent_does_not_send_a_result_out_of_its_bounds(wire):
    opened(wire)
    with pytest.raises(LocalProtocolError, match="exit is not from 0 to 255"):
        wire.agent.send_result(1, ExecResult(256))
    wire.agent.send_result(1, SUCCESS)
    assert wire.settle() == ([], [ResultReceived(1, SUCCESS)])


def test_request_that_does_not_fit_takes_no_channel(wire):
    with pytest.raises(LocalProtocolError, match="a frame holds"):
        wire.connector.open(Exec((bytes(70_000),)))
    assert wire.connector.is_idle
    assert wire.connector.open(COMMAND) == 1


def test_channel_numbers_are_never_reused(wire):
    wire.connector._last_channel = CHANNEL_ID_MAX - 1
    assert wire.connector.open(COMMAND) == CHANNEL_ID_MAX
    with pytest.raises(LocalProtocolError):
        wire.connector.open(COMMAND)


def test_empty_data_is_nothing(wire):
    opened(wire)
    wire.connector.send_data(1, b"")
    assert not wire.connector.has_data_to_send


# --- what each side may be sent ---

BODIES = {
    FrameType.OPEN: encode_request(COMMAND),
    FrameType.DATA: b"x",
    FrameType.END: End().encode(),
    FrameType.RESULT: SUCCESS.encode(),
    FrameType.REFUSED: Refusal("failed", "").encode(),
    FrameType.SIGNAL: Signal(15).encode(),
    FrameType.RESIZE: Resize(1, 1).encode(),
    FrameType.CANCEL: Cancel().encode(),
    FrameType.ACK: encode_counter(0),
    FrameType.CREDIT: encode_counter(0),
    FrameType.BLOCKED: encode_counter(0),
    FrameType.PING: Ping(1).encode(),
    FrameType.PONG: Ping(1).encode(),
    FrameType.GOODBYE: Goodbye("idle").encode(),
    FrameType.WELCOME: b"\x80",
    FrameType.DENIED: b"",
}

BOTH = {"DATA", "ACK", "CREDIT", "BLOCKED", "PING", "PONG", "GOODBYE"}
RECEIVES = {
    Side.AGENT: BOTH | {"OPEN", "END", "SIGNAL", "RESIZE", "CANCEL"},
    Side.CONNECTOR: BOTH | {"RESULT", "REFUSED"},
}
ABOUT_THE_LINK = {"ACK", "PING", "PONG", "GOODBYE"}


@pytest.mark.parametrize("kind", FrameType)
@pytest.mark.parametrize("side", Side)
def test_side_may_be_sent_its_own_frames_and_no_others(wire, side, kind):
    wire.connector.open(COMMAND)
    wire.agent.receive_record(wire.connector.next_record())
    channel = 0 if kind.name in ABOUT_THE_LINK else 2 if kind is FrameType.OPEN else 1
    record = frame(kind, channel, BODIES[kind])
    if kind.name in RECEIVES[side]:
        wire.session(side).receive_record(record)
    else:
        with pytest.raises(FrameInvalid, match=f"{kind.name} sent to the {side.value}"):
            wire.session(side).receive_record(record)


@pytest.mark.parametrize("kind", [FrameType[name] for name in sorted(ABOUT_THE_LINK)])
def test_frame_about_the_link_names_no_channel(wire, kind):
    opened(wire)
    with pytest.raises(FrameInvalid, match=f"{kind.name} on channel 1"):
        wire.agent.receive_record(frame(kind, 1, BODIES[kind]))


@pytest.mark.parametrize("channel", [0, 2, CHANNEL_ID_MAX])
@pytest.mark.parametrize(
    "kind", [kind for kind in FrameType if kind.name not in ABOUT_THE_LINK | {"OPEN"} and kind < 32]
)
def test_frame_on_a_channel_that_was_never_opened_is_refused(wire, kind, channel):
    opened(wire)
    side = Side.AGENT if kind.name in RECEIVES[Side.AGENT] else Side.CONNECTOR
    with pytest.raises(FrameInvalid, match=f"{kind.name} on channel {channel}, which was never opened"):
        wire.session(side).receive_record(frame(kind, channel, BODIES[kind]))


@pytest.mark.parametrize("kind", [FrameType.DATA, FrameType.RESULT, FrameType.REFUSED, FrameType.CREDIT])
def test_connector_refuses_an_answer_to_a_request_that_it_has_not_sent(wire, kind):
    wire.connector.open(COMMAND)
    with pytest.raises(FrameInvalid, match=f"{kind.name} on channel 1, which the peer cannot know yet"):
        wire.connector.receive_record(frame(kind, 1, BODIES[kind]))


def test_goodbye_is_the_last_frame_of_a_link(wire):
    wire.connector.open(COMMAND)
    wire.connector.send_data(1, bytes(WINDOW_INITIAL_BYTES))
    wire.connector.send_goodbye("bye")
    order = []
    while (record := wire.connector.next_record()) is not None:
        order += kinds(record)
    assert order[0] is FrameType.OPEN
    assert order[-1] is FrameType.GOODBYE


@pytest.mark.parametrize("channel", [0, 1])
def test_agent_refuses_a_channel_number_that_does_not_rise(wire, channel):
    opened(wire)
    with pytest.raises(FrameInvalid, match=f"channel {channel} opened after 1"):
        wire.agent.receive_record(frame(FrameType.OPEN, channel, BODIES[FrameType.OPEN]))


def test_agent_refuses_data_for_a_second_stream(wire):
    opened(wire)
    with pytest.raises(FrameInvalid, match="second stream"):
        wire.agent.receive_record(frame(FrameType.DATA, 1, b"x", stream=1))


@pytest.mark.parametrize("side", Side)
def test_empty_data_frame_is_refused(wire, side):
    opened(wire)
    with pytest.raises(FrameInvalid, match="empty DATA"):
        wire.session(side).receive_record(frame(FrameType.DATA, 1))


@pytest.mark.parametrize(
    "kind", [kind for kind in BODIES if BODIES[kind] and kind.name not in {"OPEN", "DATA", "WELCOME"}]
)
def test_frame_with_a_bad_body_is_refused(wire, kind):
    opened(wire)
    side = Side.AGENT if kind.name in RECEIVES[Side.AGENT] else Side.CONNECTOR
    channel = 0 if kind.name in ABOUT_THE_LINK else 1
    with pytest.raises((FrameInvalid, MessageInvalid)):
        wire.session(side).receive_record(frame(kind, channel, b"\xc1"))


def test_data_beyond_the_window_is_refused(wire):
    opened(wire)
    for _ in range(4):
        wire.agent.receive_record(frame(FrameType.DATA, 1, bytes(WINDOW_INITIAL_BYTES // 4)))
    with pytest.raises(WindowExceeded):
        wire.agent.receive_record(frame(FrameType.DATA, 1, b"x"))


@pytest.mark.parametrize("side", Side)
def test_acknowledgement_of_what_was_never_sent_is_refused(wire, side):
    opened(wire)
    with pytest.raises(ResumeInvalid, match="2 frames acknowledged"):
        wire.session(side).receive_record(frame(FrameType.ACK, 0, encode_counter(2)))


def test_acknowledgement_that_takes_back_another_is_refused(wire):
    opened(wire)
    wire.connector.receive_record(frame(FrameType.ACK, 0, encode_counter(1)))
    wire.connector.receive_record(frame(FrameType.ACK, 0, encode_counter(1)))
    with pytest.raises(ResumeInvalid, match="0 frames acknowledged, 1 to 1 were possible"):
        wire.connector.receive_record(frame(FrameType.ACK, 0, encode_counter(0)))


def test_after_a_breach_only_a_goodbye_that_says_why_is_sent(wire):
    """The session is over on this side, and the peer learns the reason before the link closes."""
    opened(wire)
    wire.agent.send_data(1, b"unsent")
    with pytest.raises(RemoteProtocolError):
        wire.agent.receive_record(frame(FrameType.RESULT, 1, b""))
    with pytest.raises(LocalProtocolError, match="is over"):
        wire.agent.receive_record(b"")
    wire.agent.consume(1, 1)
    with pytest.raises(LocalProtocolError):
        wire.agent.send_result(1, SUCCESS)
    record = wire.agent.next_record()
    assert wire.agent.next_record() is None
    assert wire.connector.receive_record(record) == [GoodbyeReceived(Goodbye("frame", "RESULT sent to the agent"))]
    wire.agent.detach()
    with pytest.raises(LocalProtocolError, match="is over"):
        wire.agent.attach(0)


# --- how many requests ---


def test_connector_opens_as_many_as_the_agent_allows():
    wire = Wire(Session(Side.CONNECTOR, channels_max=2), Session(Side.AGENT, channels_max=2))
    wire.connector.open(COMMAND)
    assert wire.connector.can_open
    wire.connector.open(COMMAND)
    assert not wire.connector.can_open
    with pytest.raises(LocalProtocolError, match="no more requests for now: 2 are open"):
        wire.connector.open(COMMAND)
    wire.settle()
    wire.agent.send_result(1, SUCCESS)
    wire.settle()
    assert wire.connector.can_open


def test_agent_refuses_a_request_more_than_it_allows():
    wire = Wire(Session(Side.CONNECTOR, channels_max=3), Session(Side.AGENT, channels_max=2))
    for _ in range(3):
        wire.connector.open(COMMAND)
    with pytest.raises(WindowExceeded, match="more than 2 requests open"):
        wire.settle()


def test_agent_counts_a_request_until_its_last_frame_is_acknowledged():
    agent = Session(Side.AGENT, channels_max=1)
    agent.attach(0)
    agent.receive_record(frame(FrameType.OPEN, 1, BODIES[FrameType.OPEN]))
    agent.send_result(1, SUCCESS)
    agent.next_record()
    with pytest.raises(WindowExceeded):
        agent.receive_record(frame(FrameType.OPEN, 2, BODIES[FrameType.OPEN]))

    agent = Session(Side.AGENT, channels_max=1)
    agent.attach(0)
    agent.receive_record(frame(FrameType.OPEN, 1, BODIES[FrameType.OPEN]))
    agent.send_result(1, SUCCESS)
    agent.next_record()
    agent.receive_record(frame(FrameType.ACK, 0, encode_counter(1)) + frame(FrameType.OPEN, 2, BODIES[FrameType.OPEN]))
    assert agent.is_open(2)


def test_connector_acknowledges_a_result_ahead_of_the_next_request():
    wire = Wire(Session(Side.CONNECTOR, channels_max=1), Session(Side.AGENT, channels_max=1))
    opened(wire)
    wire.agent.send_result(1, SUCCESS)
    wire.settle()
    wire.connector.open(COMMAND)
    assert kinds(wire.write(Side.CONNECTOR)) == [FrameType.ACK, FrameType.OPEN]
    assert wire.deliver(Side.CONNECTOR) == [RequestReceived(2, COMMAND)]


# --- order and fairness ---


def test_cancel_and_signal_overtake_stdin(wire):
    opened(wire)
    wire.connector.send_data(1, bytes(QUEUE_MAX_BYTES))
    wire.connector.next_record()
    wire.connector.send_signal(1, 2)
    wire.connector.send_cancel(1)
    assert kinds(wire.connector.next_record())[:3] == [FrameType.SIGNAL, FrameType.CANCEL, FrameType.DATA]


def test_control_frames_keep_the_order_of_the_calls(wire):
    for signal in (1, 2):
        channel = wire.connector.open(COMMAND)
        wire.connector.send_signal(channel, signal)
    record = wire.connector.next_record()
    assert [(entry.kind.name, entry.channel) for entry in split_frames(record)] == [
        ("OPEN", 1),
        ("SIGNAL", 1),
        ("OPEN", 2),
        ("SIGNAL", 2),
    ]


def test_data_does_not_overtake_a_request_that_waits_for_the_next_record(wire):
    for _ in range(2):
        channel = wire.connector.open(Exec((b"x" * 40_000,), stdin=True))
        wire.connector.send_data(channel, b"in")
    assert kinds(wire.write(Side.CONNECTOR)) == [FrameType.OPEN]
    assert kinds(wire.write(Side.CONNECTOR)) == [FrameType.OPEN, FrameType.DATA, FrameType.DATA]
    assert [type(event) for event in wire.settle()[0]] == [RequestReceived, RequestReceived, DataReceived, DataReceived]


def test_request_was_written_once_it_is_in_a_record(wire):
    """Whether the agent may have seen it: what was never written is safe to ask again."""
    channel = wire.connector.open(COMMAND)
    assert not wire.connector.was_written(channel)
    wire.write(Side.CONNECTOR)
    wire.cut()
    assert wire.connector.was_written(channel)


def test_result_never_overtakes_data(wire):
    """A result waits behind DATA that has no credit."""
    opened(wire)
    output = bytes(range(256)) * 8192
    wire.agent.send_data(1, output)
    wire.agent.send_result(1, SUCCESS)
    _, events = wire.settle(consume=False)
    assert len(content(events, 1)) == WINDOW_OPEN_BYTES
    assert not any(isinstance(event, ResultReceived) for event in events)
    wire.connector.consume(1, WINDOW_OPEN_BYTES)
    _, more = wire.settle()
    assert content(events + more, 1) == output
    assert more[-1] == ResultReceived(1, SUCCESS)


def test_lone_bulk_channel_has_the_record_for_itself(wire):
    opened(wire)
    wire.agent.send_data(1, bytes(2 * DATA_BODY_BYTES))
    (data,) = frames(wire.agent.next_record(), FrameType.DATA)
    assert len(data.body) == DATA_BODY_BYTES


def test_small_channel_is_in_the_next_record_beside_a_bulk_one(wire):
    """A bulk transfer gives way in pieces of 16 KiB, and the small one's frames are not behind it."""
    opened(wire)
    opened(wire)
    wire.agent.send_data(1, bytes(QUEUE_MAX_BYTES))
    assert len(wire.agent.next_record()) > DATA_BODY_BYTES
    wire.agent.send_data(2, b"small")
    wire.agent.send_result(2, SUCCESS)
    pieces = [(entry.kind.name, entry.channel, len(entry.body)) for entry in split_frames(wire.agent.next_record())]
    assert pieces[0] == ("DATA", 1, DATA_BODY_SHARED_BYTES)
    assert pieces[1] == ("DATA", 2, 5)
    assert ("RESULT", 2) in [piece[:2] for piece in pieces]


def test_bulk_channels_share_the_link_equally(wire):
    shares = dict.fromkeys(range(1, 5), 0)
    for _ in shares:
        opened(wire)
    for channel in shares:
        wire.agent.send_data(channel, bytes(WINDOW_INITIAL_BYTES))
    for _ in range(4):
        for entry in frames(wire.agent.next_record(), FrameType.DATA):
            shares[entry.channel] += len(entry.body)
    assert max(shares.values()) - min(shares.values()) <= DATA_BODY_SHARED_BYTES
    assert sum(shares.values()) > 3.9 * DATA_BODY_BYTES


def test_no_record_is_longer_than_its_plaintext_may_be(wire):
    """Whatever is combined: credits, a ping, requests and bulk."""
    for _ in range(200):
        wire.connector.open(Exec((b"x" * 1000,)))
    wire.connector.send_ping(1)
    for channel in range(1, 60):
        wire.connector.send_data(channel, bytes(5000))
    lengths = []
    while (record := wire.connector.next_record()) is not None:
        lengths.append(len(record))
    assert max(lengths) <= RECORD_PLAINTEXT_MAX_BYTES
    assert min(lengths[:-1]) > RECORD_PLAINTEXT_MAX_BYTES - DATA_BODY_SHARED_BYTES


def test_sendable_says_how_much_to_queue(wire):
    opened(wire)
    assert wire.agent.sendable(1) == QUEUE_MAX_BYTES
    wire.agent.send_data(1, bytes(QUEUE_MAX_BYTES - 10))
    assert wire.agent.sendable(1) == 10
    wire.agent.send_data(1, bytes(20))
    assert wire.agent.sendable(1) == 0
    wire.agent.next_record()
    assert wire.agent.sendable(1) == DATA_BODY_BYTES - 10
    assert wire.agent.sendable(7) == 0


def test_data_is_cut_to_the_credit_and_blocked_is_said_once(wire):
    opened(wire)
    wire.agent.send_data(1, bytes(WINDOW_OPEN_BYTES + 1))
    records = []
    while wire.agent.has_data_to_send:
        records.append(wire.agent.next_record())
    assert sum(len(entry.body) for record in records for entry in frames(record, FrameType.DATA)) == WINDOW_OPEN_BYTES
    assert [decode_counter(entry) for record in records for entry in frames(record, FrameType.BLOCKED)] == [
        WINDOW_OPEN_BYTES
    ]
    wire.agent.send_data(1, b"more")
    assert not wire.agent.has_data_to_send


def stated_window(record):
    """Return what a record's OPEN says about the window."""
    (opening,) = frames(record, FrameType.OPEN)
    return decode_request(opening.body).window


def test_connector_states_a_window_in_its_request_and_holds_it_open_at_once(wire):
    """The agent sends all of it before it has heard anything more, and not a byte beyond."""
    wire.connector.open(COMMAND)
    assert stated_window(wire.write(Side.CONNECTOR)) == WINDOW_OPEN_BYTES
    wire.deliver(Side.CONNECTOR)
    wire.agent.send_data(1, bytes(WINDOW_OPEN_BYTES + 1))
    while wire.write(Side.AGENT):
        pass
    events = [event for _ in tuple(wire.flying[Side.AGENT]) for event in wire.deliver(Side.AGENT)]
    assert len(content(events, 1)) == WINDOW_OPEN_BYTES
    with pytest.raises(WindowExceeded):
        wire.connector.receive_record(frame(FrameType.DATA, 1, b"x"))


@pytest.mark.parametrize(
    ("budget", "window"),
    [(0, 1), (1, 2), (2, 2), (3, 4), (6, 4), (7, 8)],
    ids=lambda share: f"{share} initial windows",
)
def test_connector_states_as_large_a_window_as_its_budget_allows(budget, window):
    """It doubles for as long as it can be paid for; without a budget the request says nothing of windows."""
    wire = Wire(Session(Side.CONNECTOR, budget=Budget(budget * WINDOW_INITIAL_BYTES)))
    wire.connector.open(COMMAND)
    record = wire.write(Side.CONNECTOR)
    assert stated_window(record) == window * WINDOW_INITIAL_BYTES
    assert (b"window" in record) is (window > 1)


def test_connector_takes_the_budget_of_a_window_back_when_the_request_is_over(wire):
    budget = Budget(WINDOW_OPEN_BYTES - WINDOW_INITIAL_BYTES)
    wire = Wire(Session(Side.CONNECTOR, budget=budget))
    opened(wire)
    assert budget.reserved_bytes == budget.total_bytes
    wire.connector.open(COMMAND)
    assert stated_window(wire.write(Side.CONNECTOR)) == WINDOW_INITIAL_BYTES
    wire.agent.send_result(1, SUCCESS)
    wire.settle()
    assert budget.reserved_bytes == 0
    wire.connector.open(COMMAND)
    assert stated_window(wire.write(Side.CONNECTOR)) == WINDOW_OPEN_BYTES


def test_session_tells_how_much_may_arrive_before_anything_was_read(wire):
    opened(wire)
    assert wire.connector.window_size(1) == WINDOW_OPEN_BYTES
    assert wire.agent.window_size(1) == WINDOW_INITIAL_BYTES
    assert wire.connector.window_size(9) == WINDOW_INITIAL_BYTES


def test_request_that_does_not_fit_takes_no_budget():
    budget = Budget(1 << 30)
    session = Session(Side.CONNECTOR, budget=budget)
    with pytest.raises(LocalProtocolError, match="a frame holds"):
        session.open(Exec((bytes(70_000),)))
    assert budget.reserved_bytes == 0


@pytest.mark.parametrize(
    "request_made",
    [Put(b"f"), Exec((b"cat",), stdin=True), Exec((b"sh",), script_index=0, script_size=1)],
    ids=["put", "exec with standard input", "exec with a script"],
)
def test_agent_grants_more_as_soon_as_a_request_that_data_follows_arrives(wire, request_made):
    wire.connector.open(request_made)
    wire.agent.receive_record(wire.connector.next_record())
    (credit,) = frames(wire.agent.next_record(), FrameType.CREDIT)
    assert (credit.channel, decode_counter(credit)) == (1, WINDOW_OPEN_BYTES)
    for _ in range(32):
        wire.agent.receive_record(frame(FrameType.DATA, 1, bytes(WINDOW_OPEN_BYTES // 32)))
    with pytest.raises(WindowExceeded):
        wire.agent.receive_record(frame(FrameType.DATA, 1, b"x"))


def test_agent_grants_nothing_where_no_data_follows(wire):
    budget = Budget(1 << 30)
    wire = Wire(agent=Session(Side.AGENT, budget=budget))
    opened(wire)
    assert not wire.agent.has_data_to_send
    assert budget.reserved_bytes == 0


def test_agent_without_budget_grants_the_initial_window_and_says_nothing():
    wire = Wire(agent=Session(Side.AGENT, budget=Budget(WINDOW_INITIAL_BYTES - 1)))
    opened(wire, Put(b"f"))
    assert not wire.agent.has_data_to_send
    wire.connector.send_data(1, bytes(WINDOW_INITIAL_BYTES + 1))
    assert len(content(wire.settle(consume=False)[0], 1)) == WINDOW_INITIAL_BYTES


@pytest.mark.parametrize("window", [0, WINDOW_INITIAL_BYTES - 1, -1])
def test_agent_refuses_a_request_whose_window_is_out_of_bounds_and_the_session_lives_on(window):
    """A window below the initial one would take back what the agent may already count on."""
    wire = Wire()
    wire.agent.receive_record(frame(FrameType.OPEN, 1, encode_request(COMMAND, window)))
    (refused,) = frames(wire.agent.next_record(), FrameType.REFUSED)
    assert Refusal.decode(refused.body).code == "bad-request"
    assert "window is not" in Refusal.decode(refused.body).text
    assert wire.agent.receive_record(frame(FrameType.OPEN, 2, encode_request(COMMAND))) == [RequestReceived(2, COMMAND)]


def test_agent_sends_without_end_to_a_window_without_end(wire):
    wire.agent.receive_record(frame(FrameType.OPEN, 1, encode_request(COMMAND, 2**64 - 1)))
    wire.agent.send_data(1, bytes(12 * WINDOW_OPEN_BYTES))
    sent = 0
    while (record := wire.agent.next_record()) is not None:
        assert FrameType.BLOCKED not in kinds(record)
        sent += sum(len(entry.body) for entry in frames(record, FrameType.DATA))
    assert sent == 12 * WINDOW_OPEN_BYTES


def test_window_of_a_fast_reader_grows_and_everything_arrives(wire):
    opened(wire)
    output = bytes(range(256)) * 16384
    wire.agent.send_data(1, output)
    wire.agent.send_result(1, SUCCESS)
    _, events = wire.settle()
    assert content(events, 1) == output
    assert events[-1] == ResultReceived(1, SUCCESS)


def test_blocked_behind_the_last_byte_read_is_answered_with_a_larger_window(wire):
    opened(wire)
    for _ in range(4):
        wire.agent.receive_record(frame(FrameType.DATA, 1, bytes(WINDOW_INITIAL_BYTES // 4)))
    wire.agent.consume(1, WINDOW_INITIAL_BYTES)
    while wire.agent.next_record() is not None:
        pass
    wire.agent.receive_record(frame(FrameType.BLOCKED, 1, encode_counter(WINDOW_INITIAL_BYTES)))
    (credit,) = frames(wire.agent.next_record(), FrameType.CREDIT)
    assert (credit.channel, decode_counter(credit)) == (1, 3 * WINDOW_INITIAL_BYTES)


def test_memoryview_is_sent_as_its_bytes(wire):
    opened(wire)
    wire.agent.send_data(1, memoryview(b"abcdef")[2:4])
    assert wire.settle()[1] == [DataReceived(1, 0, b"cd")]


# --- acknowledgements, pings, goodbyes ---


def test_receiver_acknowledges_after_so_many_frames(wire):
    opened(wire)
    wire.agent.send_ping(0)
    wire.agent.next_record()
    for _ in range(ACK_EVERY_FRAMES - 1):
        wire.agent.receive_record(frame(FrameType.CANCEL, 1, BODIES[FrameType.CANCEL]))
    assert not wire.agent.has_data_to_send
    wire.agent.receive_record(frame(FrameType.CANCEL, 1, BODIES[FrameType.CANCEL]))
    assert acknowledged(wire.agent.next_record()) == 1 + ACK_EVERY_FRAMES
    assert not wire.agent.has_data_to_send


def test_receiver_acknowledges_after_so_many_bytes(wire):
    opened(wire, Put(b"f"))
    wire.agent.send_ping(0)
    wire.agent.next_record()
    piece = ACK_EVERY_BYTES // 20
    for size in [piece] * 19:
        wire.agent.receive_record(frame(FrameType.DATA, 1, bytes(size)))
        assert not wire.agent.has_data_to_send
    wire.agent.receive_record(frame(FrameType.DATA, 1, bytes(ACK_EVERY_BYTES - 19 * piece)))
    assert kinds(wire.agent.next_record()) == [FrameType.ACK]


@pytest.mark.parametrize("spared", [0, 1])
def test_receiver_without_an_open_request_acknowledges_after_fewer_bytes(wire, spared):
    """Or an idle session would make its peer keep the output of the last command for as long as it is idle."""
    opened(wire)
    wire.agent.send_data(1, bytes(ACK_IDLE_BYTES - len(SUCCESS.encode()) - spared))
    wire.agent.send_result(1, SUCCESS)
    while (record := wire.agent.next_record()) is not None:
        assert not wire.connector.has_data_to_send
        wire.connector.receive_record(record)
    assert wire.connector.has_data_to_send is not bool(spared)


def test_whatever_is_sent_acknowledges_as_well(wire):
    opened(wire)
    wire.agent.send_ping(0)
    record = wire.agent.next_record()
    assert kinds(record) == [FrameType.ACK, FrameType.PING]
    assert acknowledged(record) == 1


def test_acknowledged_frames_are_forgotten(wire):
    opened(wire)
    assert wire.connector.retained_bytes > 0
    wire.connector.receive_record(frame(FrameType.ACK, 0, encode_counter(1)))
    assert wire.connector.retained_bytes == 0


@pytest.mark.parametrize("side", Side)
def test_ping_is_answered_with_its_number(wire, side):
    wire.session(side).send_ping(77)
    at_agent, at_connector = wire.settle()
    assert at_agent + at_connector == [PongReceived(77)]


@pytest.mark.parametrize("side", Side)
def test_goodbye_says_why(wire, side):
    wire.session(side).send_goodbye("stopping", "the agent \udcff is stopped" + "." * 2000)
    at_agent, at_connector = wire.settle()
    ((goodbye,),) = at_agent + at_connector
    assert goodbye.code == "stopping"
    assert goodbye.text.startswith("the agent \\udcff is stopped.")
    assert len(goodbye.text) == 1024


# --- channels that are over ---


def test_connector_drops_stdin_that_was_queued_when_the_result_came(wire):
    opened(wire)
    wire.connector.send_data(1, bytes(1000))
    wire.agent.send_result(1, SUCCESS)
    wire.connector.receive_record(wire.agent.next_record())
    assert not wire.connector.has_data_to_send
    assert not wire.connector.is_open(1)
    wire.connector.consume(1, 5)
    with pytest.raises(LocalProtocolError):
        wire.connector.send_data(1, b"x")


def test_credit_for_a_channel_that_is_over_is_ignored(wire):
    opened(wire)
    wire.agent.send_result(1, SUCCESS)
    wire.settle()
    wire.connector.receive_record(frame(FrameType.CREDIT, 1, encode_counter(2**64 - 1)))
    wire.connector.receive_record(frame(FrameType.BLOCKED, 1, encode_counter(0)))
    wire.agent.receive_record(frame(FrameType.BLOCKED, 1, encode_counter(0)))
    assert not wire.agent.has_data_to_send


def test_cancel_that_crosses_the_result_is_dropped(wire):
    opened(wire)
    wire.connector.send_cancel(1)
    wire.agent.send_result(1, SUCCESS)
    assert wire.settle() == ([], [ResultReceived(1, SUCCESS)])


def test_result_is_sent_although_unread_stdin_blocks_the_connector(wire):
    opened(wire)
    wire.connector.send_data(1, bytes(2 * WINDOW_INITIAL_BYTES))
    wire.settle(consume=False)
    wire.agent.send_refusal(1, "no-space", "the disk is full")
    assert wire.settle(consume=False)[1] == [RefusalReceived(1, Refusal("no-space", "the disk is full"))]
    assert wire.connector.is_idle
