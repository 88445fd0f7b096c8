"""What a hostile or broken peer can make a session hold, in bytes."""

from __future__ import annotations

import pytest

from pyinfra_agent_protocol._constants import (
    CHANNELS_MAX,
    FRAME_BODY_MAX_BYTES,
    FRAME_HEADER_BYTES,
    QUEUE_MAX_BYTES,
    RECORD_PLAINTEXT_MAX_BYTES,
    WINDOW_INITIAL_BYTES,
    WINDOW_MAX_BYTES,
)
from pyinfra_agent_protocol._errors import WindowExceeded
from pyinfra_agent_protocol._events import DataReceived
from pyinfra_agent_protocol._frames import FrameType, encode_counter, split_frames
from pyinfra_agent_protocol._messages import Exec, Goodbye, Ping, encode_request
from pyinfra_agent_protocol._session import Session, Side
from pyinfra_agent_protocol._window import Budget
from tests.protocol.helpers import COMMAND, SUCCESS, Wire, frame, frames, kinds, opened

KEPT_MAX = 1024 * 1024
ANY_CREDIT = encode_counter(2**64 - 1)


def queued_bytes(session):
    return sum(channel.queued_bytes for channel in session._channels.values())


def agent_with(channels, **options):
    """An agent with requests open, all of them granted any number of bytes."""
    agent = Session(Side.AGENT, **options)
    agent.attach(0)
    for channel in range(1, channels + 1):
        agent.receive_record(frame(FrameType.OPEN, channel, encode_request(COMMAND)))
        agent.receive_record(frame(FrameType.CREDIT, channel, ANY_CREDIT))
    return agent


def test_agent_keeps_no_more_for_a_peer_that_never_acknowledges():
    """Output stops at the bound and one frame; from there the command's pipe blocks, not the agent's memory."""
    agent = agent_with(8, retained_max_bytes=KEPT_MAX)
    written = 0
    for _ in range(200):
        for channel in range(1, 9):
            if count := agent.sendable(channel):
                agent.send_data(channel, bytes(count))
        if (record := agent.next_record()) is not None:
            written += len(record)
    assert KEPT_MAX <= agent.retained_bytes <= KEPT_MAX + RECORD_PLAINTEXT_MAX_BYTES
    assert written <= KEPT_MAX + 2 * RECORD_PLAINTEXT_MAX_BYTES
    assert queued_bytes(agent) <= 8 * QUEUE_MAX_BYTES
    assert not agent.has_data_to_send


def test_agent_goes_on_when_a_late_acknowledgement_comes():
    agent = agent_with(1, retained_max_bytes=KEPT_MAX)
    sent = 0
    while agent.sendable(1):
        agent.send_data(1, bytes(agent.sendable(1)))
        while (record := agent.next_record()) is not None:
            sent += len(frames(record, FrameType.DATA))
    agent.receive_record(frame(FrameType.ACK, 0, encode_counter(sent)))
    assert agent.retained_bytes == 0
    assert frames(agent.next_record(), FrameType.DATA)


def test_agent_still_answers_pings_when_it_keeps_all_that_it_may():
    agent = agent_with(1, retained_max_bytes=KEPT_MAX)
    while agent.sendable(1):
        agent.send_data(1, bytes(agent.sendable(1)))
        while agent.next_record() is not None:
            pass
    agent.receive_record(frame(FrameType.PING, 0, Ping(1).encode()))
    assert kinds(agent.next_record()) == [FrameType.PONG]


def test_connector_keeps_no_more_for_an_agent_that_answers_and_never_acknowledges():
    """Requests stop at the bound too: an OPEN is kept like DATA."""
    connector = Session(Side.CONNECTOR, channels_max=4, retained_max_bytes=KEPT_MAX)
    connector.attach(0)
    request = Exec((bytes(60_000).replace(b"\0", b"x"),))
    asked = 0
    while connector.can_open:
        channel = connector.open(request)
        while connector.next_record() is not None:
            pass
        connector.receive_record(frame(FrameType.RESULT, channel, SUCCESS.encode()))
        asked += 1
        assert asked < 100
    assert connector.retained_bytes <= KEPT_MAX + RECORD_PLAINTEXT_MAX_BYTES


def test_agent_holds_one_frame_of_each_kind_for_a_peer_that_never_reads():
    """A flood of pings, goodbyes and BLOCKED leaves one answer of a kind."""
    agent = agent_with(2)
    flood = frame(FrameType.PING, 0, Ping(7).encode()) + frame(FrameType.GOODBYE, 0, Goodbye("x").encode())
    flood += b"".join(frame(FrameType.BLOCKED, channel, bytes(8)) for channel in (1, 2))
    for _ in range(5000):
        agent.receive_record(flood)
    assert kinds(agent.next_record()) == [FrameType.ACK, FrameType.PONG]
    assert not agent.has_data_to_send


def test_agent_holds_one_credit_a_channel_for_a_peer_that_never_reads():
    agent = agent_with(1)
    received = 0
    while received < 4 * WINDOW_INITIAL_BYTES:
        for event in agent.receive_record(frame(FrameType.DATA, 1, bytes(1024))):
            assert isinstance(event, DataReceived)
            agent.consume(1, len(event.data))
            received += len(event.data)
    record = agent.next_record()
    assert kinds(record) == [FrameType.ACK, FrameType.CREDIT]
    assert not agent.has_data_to_send


def test_agent_bounds_the_answers_to_a_peer_that_requests_without_end():
    """Refusals are counted like requests: at most `channels_max` wait, then the session ends."""
    agent = Session(Side.AGENT)
    agent.attach(0)
    bad = b"\x81\xa7request\xd9\xff" + b"x" * 255
    for channel in range(1, CHANNELS_MAX + 1):
        agent.receive_record(frame(FrameType.OPEN, channel, bad))
    with pytest.raises(WindowExceeded, match=f"more than {CHANNELS_MAX} requests open"):
        agent.receive_record(frame(FrameType.OPEN, CHANNELS_MAX + 1, bad))
    assert queued_bytes(agent) <= CHANNELS_MAX * 256


def test_unread_input_is_bounded_by_the_windows():
    """A peer may send the initial window on each channel and not a byte more while nobody reads."""
    agent = agent_with(3)
    for channel in (1, 2, 3):
        total = 0
        while total < WINDOW_INITIAL_BYTES:
            body = bytes(min(FRAME_BODY_MAX_BYTES, WINDOW_INITIAL_BYTES - total))
            agent.receive_record(frame(FrameType.DATA, channel, body))
            agent.receive_record(frame(FrameType.BLOCKED, channel, encode_counter(total + len(body))))
            total += len(body)
    held = sum(channel.receive_window.buffered for channel in agent._channels.values())
    assert held == 3 * WINDOW_INITIAL_BYTES
    while (record := agent.next_record()) is not None:
        assert FrameType.CREDIT not in kinds(record)
    with pytest.raises(WindowExceeded):
        agent.receive_record(frame(FrameType.DATA, 1, b"x"))


def test_growth_of_all_windows_fits_the_budgets_of_session_and_agent():
    """Greedy peers on many channels of two sessions get what the agent has, and no more."""
    agent_budget = Budget(1024 * 1024)
    sessions = [
        agent_with(6, budget=Budget(768 * 1024, agent_budget)),
        agent_with(6, budget=Budget(768 * 1024, agent_budget)),
    ]
    for _ in range(8):
        for agent in sessions:
            for channel in agent._channels.values():
                window = channel.receive_window
                while count := min(FRAME_BODY_MAX_BYTES, window.limit - window.received):
                    agent.receive_record(frame(FrameType.DATA, channel.id, bytes(count)))
                agent.receive_record(frame(FrameType.BLOCKED, channel.id, encode_counter(window.received)))
                agent.consume(channel.id, window.buffered)
    granted = [channel.receive_window.size for agent in sessions for channel in agent._channels.values()]
    assert max(granted) <= WINDOW_MAX_BYTES
    assert sum(granted) - 12 * WINDOW_INITIAL_BYTES == agent_budget.reserved_bytes <= 1024 * 1024
    for agent in sessions:
        agent.close()
    assert agent_budget.reserved_bytes == 0


def test_late_frames_are_not_held():
    """What comes for an answered request is dropped, whatever its size."""
    agent = agent_with(1)
    agent.send_result(1, SUCCESS)
    for _ in range(100):
        assert agent.receive_record(frame(FrameType.DATA, 1, bytes(FRAME_BODY_MAX_BYTES))) == []


def test_slices_of_one_buffer_are_kept_by_reference():
    """Data is not copied into the queue nor for retention: both hold views of what the skin gave."""
    wire = Wire()
    opened(wire)
    output = bytes(100_000)
    wire.agent.send_data(1, output)
    wire.write(Side.AGENT)
    kept = wire.agent._outbox._retained[-1].body
    assert isinstance(kept, memoryview)
    assert kept.obj is output


def test_replay_copies_nothing_until_it_is_written():
    wire = Wire()
    opened(wire)
    wire.agent.send_data(1, bytes(WINDOW_INITIAL_BYTES))
    while wire.write(Side.AGENT):
        pass
    before = wire.agent.retained_bytes
    wire.cut()
    wire.resume()
    assert wire.agent.retained_bytes == before
    replayed = 0
    while (record := wire.agent.next_record()) is not None:
        replayed += sum(len(entry.body) + FRAME_HEADER_BYTES for entry in split_frames(record) if entry.kind < 16)
    assert replayed == before
