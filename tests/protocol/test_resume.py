"""Links are lost at any point, and both ends still see everything once and in order."""

from __future__ import annotations

from collections import defaultdict, deque

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pyinfra_agent_protocol._channel import Half
from pyinfra_agent_protocol._constants import QUEUE_MAX_BYTES, WINDOW_INITIAL_BYTES, WINDOW_OPEN_BYTES
from pyinfra_agent_protocol._errors import LocalProtocolError, ResumeInvalid
from pyinfra_agent_protocol._events import (
    CancelReceived,
    DataReceived,
    PongReceived,
    RefusalReceived,
    RequestReceived,
    ResizeReceived,
    ResultReceived,
    SignalReceived,
    StreamEnded,
)
from pyinfra_agent_protocol._frames import FrameType, decode_counter
from pyinfra_agent_protocol._messages import Exec, ExecResult, Put, Refusal, Resize, Signal, decode_request
from pyinfra_agent_protocol._session import Session, Side
from pyinfra_agent_protocol._window import Budget
from tests.protocol.helpers import COMMAND, SUCCESS, Wire, content, frames, kinds, opened, reproducible

# --- examples ---


def test_request_lost_with_its_link_arrives_once_on_the_next():
    wire = Wire()
    wire.connector.open(COMMAND)
    wire.write(Side.CONNECTOR)
    wire.cut(upward=0)
    wire.resume()
    assert wire.settle()[0] == [RequestReceived(1, COMMAND)]


def test_request_that_arrived_is_not_replayed():
    wire = Wire()
    wire.connector.open(COMMAND)
    wire.write(Side.CONNECTOR)
    assert wire.cut(upward=1)[0] == [RequestReceived(1, COMMAND)]
    wire.resume()
    assert not wire.connector.has_data_to_send
    assert wire.settle() == ([], [])
    assert wire.connector.retained_bytes == 0


def test_result_lost_with_its_link_arrives_once_on_the_next():
    wire = Wire()
    opened(wire)
    wire.agent.send_data(1, b"out")
    wire.agent.send_result(1, SUCCESS)
    wire.write(Side.AGENT)
    wire.cut()
    wire.resume()
    assert wire.settle()[1] == [DataReceived(1, 0, b"out"), ResultReceived(1, SUCCESS)]


def test_replayed_frames_go_before_new_ones():
    wire = Wire()
    opened(wire)
    wire.connector.send_data(1, b"old")
    wire.write(Side.CONNECTOR)
    wire.cut()
    wire.connector.send_data(1, b"new")
    wire.connector.send_cancel(1)
    wire.resume()
    assert kinds(wire.connector.next_record()) == [FrameType.DATA, FrameType.CANCEL, FrameType.DATA]


def test_replay_that_takes_several_records_is_not_interrupted():
    """Frames are numbered by their order, so a new CANCEL waits until the last old frame has gone."""
    wire = Wire()
    opened(wire)
    wire.connector.send_data(1, bytes(WINDOW_INITIAL_BYTES))
    while wire.write(Side.CONNECTOR):
        pass
    wire.cut()
    wire.connector.send_cancel(1)
    wire.resume()
    order = []
    while wire.write(Side.CONNECTOR):
        order.append(kinds(wire.flying[Side.CONNECTOR][-1]))
    assert len(order) > 1
    assert FrameType.CANCEL not in order[0]
    events = wire.settle()[0]
    assert len(content(events, 1)) == WINDOW_INITIAL_BYTES
    assert events[-1] == CancelReceived(1)


def test_commands_answered_while_there_was_no_link_are_answered_on_the_next():
    wire = Wire()
    opened(wire)
    wire.cut()
    wire.agent.send_data(1, b"out")
    wire.agent.send_result(1, SUCCESS)
    wire.connector.open(COMMAND)
    wire.resume()
    assert wire.settle() == (
        [RequestReceived(2, COMMAND)],
        [DataReceived(1, 0, b"out"), ResultReceived(1, SUCCESS)],
    )


def test_credit_lost_with_its_link_is_restated():
    """A sender that was blocked on a lost CREDIT goes on."""
    wire = Wire()
    opened(wire)
    wire.agent.send_data(1, bytes(2 * WINDOW_OPEN_BYTES))
    _, events = wire.settle(consume=False)
    wire.connector.consume(1, len(content(events, 1)))
    assert FrameType.CREDIT in kinds(wire.write(Side.CONNECTOR))
    wire.cut()
    wire.resume()
    assert len(content(wire.settle()[1], 1)) == WINDOW_OPEN_BYTES


def test_credit_is_not_restated_for_a_request_that_the_agent_may_not_have():
    """It knows no such channel yet; the request, replayed, says the window itself."""
    wire = Wire()
    wire.connector.open(COMMAND)
    first = wire.write(Side.CONNECTOR)
    for _ in range(3):
        wire.cut()
        wire.connector.open(COMMAND)
        wire.resume()
        record = wire.write(Side.CONNECTOR)
        assert FrameType.CREDIT not in kinds(record)
        assert record.startswith(first)
    assert wire.settle() == ([RequestReceived(number, COMMAND) for number in range(1, 5)], [])


def test_replayed_request_keeps_the_window_that_it_said_first():
    """Whatever became of the budget meanwhile: the frame is the same, and the connector still holds what it said."""
    budget = Budget(WINDOW_OPEN_BYTES - WINDOW_INITIAL_BYTES)
    wire = Wire(Session(Side.CONNECTOR, budget=budget))
    opened(wire)
    wire.connector.open(COMMAND)
    (small,) = frames(wire.write(Side.CONNECTOR), FrameType.OPEN)
    wire.agent.send_result(1, SUCCESS)
    wire.write(Side.AGENT)
    wire.cut(downward=1)
    assert budget.reserved_bytes == 0
    wire.connector.open(COMMAND)
    wire.resume()
    replayed, new = frames(wire.write(Side.CONNECTOR), FrameType.OPEN)
    assert replayed == small
    assert decode_request(replayed.body).window == WINDOW_INITIAL_BYTES
    assert decode_request(new.body).window == WINDOW_OPEN_BYTES
    wire.deliver(Side.CONNECTOR)
    for channel in (2, 3):
        wire.agent.send_data(channel, bytes(2 * WINDOW_OPEN_BYTES))
    events = wire.settle(consume=False)[1]
    assert [len(content(events, channel)) for channel in (2, 3)] == [WINDOW_INITIAL_BYTES, WINDOW_OPEN_BYTES]


def test_window_that_the_agent_granted_at_once_is_restated_when_it_was_lost():
    wire = Wire()
    wire.connector.open(Put(b"f"))
    wire.write(Side.CONNECTOR)
    wire.deliver(Side.CONNECTOR)
    assert FrameType.CREDIT in kinds(wire.write(Side.AGENT))
    wire.cut()
    wire.resume()
    (credit,) = frames(wire.agent.next_record(), FrameType.CREDIT)
    assert (credit.channel, decode_counter(credit)) == (1, WINDOW_OPEN_BYTES)


def test_credit_above_what_the_request_said_is_restated_and_no_other():
    wire = Wire()
    for _ in range(2):
        opened(wire)
    wire.agent.send_data(1, bytes(WINDOW_OPEN_BYTES // 2))
    wire.settle()
    wire.cut()
    wire.resume()
    (credit,) = frames(wire.connector.next_record(), FrameType.CREDIT)
    assert (credit.channel, decode_counter(credit)) == (1, WINDOW_OPEN_BYTES + WINDOW_OPEN_BYTES // 2)


def test_blocked_lost_with_its_link_is_said_again():
    wire = Wire()
    opened(wire)
    wire.agent.send_data(1, bytes(2 * WINDOW_OPEN_BYTES))
    while wire.write(Side.AGENT):
        pass
    wire.cut(downward=1)
    wire.resume()
    said = []
    while (record := wire.agent.next_record()) is not None:
        said += frames(record, FrameType.BLOCKED)
    assert len(said) == 1


def test_what_was_about_the_old_link_is_not_sent_on_the_new_one():
    wire = Wire()
    wire.connector.send_ping(1)
    wire.connector.send_goodbye("bye")
    wire.cut()
    wire.resume()
    assert wire.settle() == ([], [])


@pytest.mark.parametrize("peer_received", [0, 3, 2**64 - 1])
def test_resume_point_outside_of_what_was_sent_ends_the_session(peer_received):
    """Below what was acknowledged and above what was sent: nobody can say what the peer has."""
    wire = Wire()
    opened(wire)
    wire.connector.send_cancel(1)
    wire.agent.send_ping(1)  # carries an ACK of the request
    wire.settle()
    wire.cut()
    with pytest.raises(ResumeInvalid):
        wire.connector.attach(peer_received)
    assert not wire.connector.is_attached
    with pytest.raises(LocalProtocolError, match="is over"):
        wire.connector.attach(2)


def test_agent_refuses_a_resume_point_above_what_it_sent():
    agent = Session(Side.AGENT)
    with pytest.raises(ResumeInvalid, match="1 frames acknowledged, 0 to 0 were possible"):
        agent.attach(1)


def test_windows_and_requests_survive_ten_links_lost_in_a_row():
    """Nothing is written to most of them."""
    wire = Wire()
    opened(wire)
    wire.connector.send_data(1, b"a" * 100_000)
    for upward in (0, 0, 1, 0, 2, 0, 0, 1, 0, 0):
        wire.write(Side.CONNECTOR)
        before = wire.agent.received
        wire.cut(upward=upward)
        assert wire.agent.received >= before
        wire.resume()
    wire.settle()
    wire.agent.send_result(1, SUCCESS)
    assert wire.settle()[1] == [ResultReceived(1, SUCCESS)]


# --- any interleaving ---

RING = bytes(range(251)) * 2000


def stream_bytes(channel, stream, offset, count):
    """Bytes of which every place on every stream can be told from its neighbours."""
    at = (channel * 7 + stream * 31 + offset) % 251
    return RING[at : at + count]


class Links(RuleBasedStateMachine):
    """Two applications over a link that is cut at any record, with any prefix of the rest delivered.

    The model keeps, for each side, what was said and not yet heard: control messages in one queue per
    channel, stream bytes as counts.  Each event takes its message from the front, so one that is lost,
    repeated or out of order fails at once.
    """

    def __init__(self):
        super().__init__()
        self.have_budgets(8, 8)
        self.linked = True
        self.requests = deque()
        self.controls = defaultdict(deque)
        self.ends = defaultdict(deque)
        self.finals = {}
        self.sent = defaultdict(int)
        self.heard = defaultdict(int)
        self.unread = defaultdict(int)
        self.at_agent = set()
        self.ended = set()
        self.done = set()
        self.pongs = 0

    def have_budgets(self, connector, agent):
        """Make the two sessions, with budgets of so many initial windows."""
        self.agent_budget = Budget(2 * agent * WINDOW_INITIAL_BYTES)
        self.connector_budget = Budget(connector * WINDOW_INITIAL_BYTES)
        self.wire = Wire(
            Session(Side.CONNECTOR, channels_max=4, budget=self.connector_budget),
            Session(Side.AGENT, channels_max=4, budget=Budget(agent * WINDOW_INITIAL_BYTES, self.agent_budget)),
        )

    # what the two applications do

    @initialize(connector=st.sampled_from([0, 2, 8, 30]), agent=st.sampled_from([0, 2, 8]))
    def first_request(self, connector, agent):
        self.have_budgets(connector, agent)
        self.open(stdin=True)

    @precondition(lambda self: self.wire.connector.can_open)
    @rule(stdin=st.booleans())
    def open(self, stdin):
        request = Exec((b"run", b"%d" % len(self.finals)), stdin=stdin)
        channel = self.wire.connector.open(request)
        self.requests.append((channel, request))

    def live(self, data):
        channels = sorted(self.wire.connector._channels)
        return data.draw(st.sampled_from(channels)) if channels else None

    def running(self, data):
        channels = sorted(number for number in self.at_agent if self.wire.agent.is_open(number))
        return data.draw(st.sampled_from(channels)) if channels else None

    @rule(data=st.data(), size=st.integers(1, 150_000))
    def send_stdin(self, data, size):
        channel = self.live(data)
        if channel is None or channel in self.ended:
            return
        size = min(size, self.wire.connector.sendable(channel))
        self.wire.connector.send_data(channel, stream_bytes(channel, 0, self.sent["up", channel, 0], size))
        self.sent["up", channel, 0] += size

    @rule(data=st.data())
    def end_stdin(self, data):
        channel = self.live(data)
        if channel is not None and channel not in self.ended:
            self.ended.add(channel)
            total = self.sent["up", channel, 0]
            self.wire.connector.send_end(channel, size=total)
            self.ends[channel].append(total)

    @rule(data=st.data(), number=st.integers(1, 64))
    def send_control(self, data, number):
        channel = self.live(data)
        if channel is None:
            return
        if number < 30:
            self.wire.connector.send_signal(channel, number)
            self.controls[channel].append(SignalReceived(channel, Signal(number)))
        elif number < 60:
            self.wire.connector.send_resize(channel, number, number)
            self.controls[channel].append(ResizeReceived(channel, Resize(number, number)))
        else:
            self.wire.connector.send_cancel(channel)
            self.controls[channel].append(CancelReceived(channel))

    @rule(data=st.data(), size=st.integers(1, 300_000), stream=st.integers(0, 1))
    def send_output(self, data, size, stream):
        channel = self.running(data)
        if channel is not None:
            size = min(size, self.wire.agent.sendable(channel))
            self.wire.agent.send_data(
                channel, stream_bytes(channel, stream, self.sent["down", channel, stream], size), stream
            )
            self.sent["down", channel, stream] += size

    @rule(data=st.data(), refused=st.booleans())
    def answer(self, data, refused):
        channel = self.running(data)
        if channel is None:
            return
        if refused:
            self.wire.agent.send_refusal(channel, "failed", f"number {channel}")
            self.finals[channel] = RefusalReceived(channel, Refusal("failed", f"number {channel}"))
        else:
            self.wire.agent.send_result(channel, ExecResult(channel % 256))
            self.finals[channel] = ResultReceived(channel, ExecResult(channel % 256))

    @rule(side=st.sampled_from(Side), share=st.integers(1, 4))
    def read(self, side, share):
        for key, count in list(self.unread.items()):
            if key[0] is side:
                taken = -(-count * share // 4)
                self.unread[key] -= taken
                self.wire.session(side).consume(key[1], taken)

    @rule(side=st.sampled_from(Side))
    def ping(self, side):
        self.wire.session(side).send_ping(5)

    # what the network does

    @precondition(lambda self: self.linked)
    @rule(side=st.sampled_from(Side), records=st.integers(1, 6))
    def write(self, side, records):
        for _ in range(records):
            self.wire.write(side)

    @precondition(lambda self: self.linked)
    @rule(side=st.sampled_from(Side), records=st.integers(1, 6))
    def deliver(self, side, records):
        for _ in range(records):
            self.hear(side, self.wire.deliver(side))

    @precondition(lambda self: self.linked)
    @rule(upward=st.integers(0, 4), downward=st.integers(0, 4))
    def cut(self, upward, downward):
        at_agent, at_connector = self.wire.cut(upward, downward)
        self.hear(Side.CONNECTOR, at_agent)
        self.hear(Side.AGENT, at_connector)
        self.linked = False

    @precondition(lambda self: not self.linked)
    @rule()
    def resume(self):
        self.wire.resume()
        self.linked = True

    # what each end hears

    def hear(self, speaker, events):
        for event in events:
            if isinstance(event, DataReceived):
                way, listener = ("up", Side.AGENT) if speaker is Side.CONNECTOR else ("down", Side.CONNECTOR)
                key = (way, event.channel, event.stream)
                assert event.data == stream_bytes(event.channel, event.stream, self.heard[key], len(event.data))
                self.heard[key] += len(event.data)
                assert self.heard[key] <= self.sent[key]
                assert event.channel not in self.done
                self.unread[listener, event.channel] += len(event.data)
            elif isinstance(event, RequestReceived):
                assert self.requests.popleft() == tuple(event)
                self.at_agent.add(event.channel)
            elif isinstance(event, StreamEnded):
                assert self.ends[event.channel].popleft() == event.size == self.heard["up", event.channel, 0]
            elif isinstance(event, ResultReceived | RefusalReceived):
                assert event.channel not in self.done
                assert event == self.finals[event.channel]
                self.done.add(event.channel)
                for stream in (0, 1):
                    assert self.heard["down", event.channel, stream] == self.sent["down", event.channel, stream]
            elif isinstance(event, PongReceived):
                assert event.id == 5
                self.pongs += 1
            else:
                assert self.controls[event.channel].popleft() == event

    @invariant()
    def what_is_held_is_what_the_application_gave(self):
        for session in (self.wire.connector, self.wire.agent):
            assert len(session._channels) <= 4
            for channel in session._channels.values():
                assert channel.queued_bytes == sum(len(body) for _, _, body in channel.queue)
                assert channel.queued_bytes <= QUEUE_MAX_BYTES + 100
                assert channel.send_window.available >= 0

    @invariant()
    def nobody_may_send_what_the_other_does_not_hold_room_for(self):
        ends = (self.wire.connector, self.wire.agent)
        for sender, receiver in (ends, ends[::-1]):
            for number, channel in receiver._channels.items():
                window = channel.receive_window
                assert window.stated <= window.limit or channel.down is Half.CLOSED
                if sender.is_open(number) and channel.down is not Half.CLOSED:
                    assert sender._channels[number].send_window.limit <= window.limit
        for session, budget in ((ends[0], self.connector_budget), (ends[1], self.agent_budget)):
            grown = sum(channel.receive_window.size - WINDOW_INITIAL_BYTES for channel in session._channels.values())
            assert grown == budget.reserved_bytes <= budget.total_bytes

    def teardown(self):
        """On a last link that holds, everything that was started completes and nothing is kept."""
        if not self.linked:
            self.wire.resume()
        self.drain()
        for channel in sorted(self.at_agent):
            if self.wire.agent.is_open(channel):
                # Everything written to a command that still reads has come.
                assert self.heard["up", channel, 0] == self.sent["up", channel, 0]
                assert not self.controls[channel]
                assert not self.ends[channel]
                self.wire.agent.send_result(channel, ExecResult(0))
                self.finals[channel] = ResultReceived(channel, ExecResult(0))
        self.drain()
        for side in Side:
            self.wire.session(side).send_ping(5)
        self.drain()
        assert not self.requests
        assert self.done == self.at_agent == set(self.finals)
        assert self.wire.connector.is_idle
        assert self.wire.agent.is_idle
        self.drain()
        assert self.wire.agent.retained_bytes == 0
        assert not self.wire.agent._channels
        assert self.agent_budget.reserved_bytes == self.connector_budget.reserved_bytes == 0

    def drain(self):
        for _ in range(200):
            for key, count in list(self.unread.items()):
                self.unread[key] = 0
                self.wire.session(key[0]).consume(key[1], count)
            quiet = True
            for side in Side:
                while self.wire.write(side):
                    quiet = False
                while self.wire.flying[side]:
                    quiet = False
                    self.hear(side, self.wire.deliver(side))
            if quiet:
                return
        raise AssertionError("the two ends never become quiet")


TestLinks = Links.TestCase
TestLinks.settings = reproducible(60, stateful_step_count=60)
