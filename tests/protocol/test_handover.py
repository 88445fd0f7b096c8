"""A session that moves to another process: its peer cannot tell."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinfra_agent_protocol import (
    SESSION_BUDGET_BYTES,
    Budget,
    Exec,
    ExecResult,
    LocalProtocolError,
    MessageInvalid,
    RemoteProtocolError,
    Session,
    Side,
)
from pyinfra_agent_protocol._events import DataReceived, RequestReceived, ResultReceived, SignalReceived, StreamEnded
from tests.protocol.helpers import SUCCESS, Wire, content, opened, reproducible

STDIN = Exec((b"cat",), stdin=True)
STEPS = st.lists(
    st.sampled_from(
        [
            *("open", "answer", "end", "signal", "consume", "move", "move"),
            *("data up", "data down", "write up", "write down", "arrive up", "arrive down"),
        ]
    ),
    max_size=200,
)


def moved(session: Session, **options) -> Session:
    """Return the session as another process would have it."""
    return Session.restore(session.export(), **options)


def move(wire: Wire, *sides: Side) -> None:
    """Lose the link, move the sessions of these sides, and resume."""
    wire.cut()
    if Side.AGENT in sides:
        wire.agent = moved(wire.agent)
    if Side.CONNECTOR in sides:
        wire.connector = moved(wire.connector)
    wire.resume()


class Life:
    """A pair of sessions, what was said on each channel, and what was heard."""

    def __init__(self, chunk: int, limit: int) -> None:
        self.wire = Wire(Session(Side.CONNECTOR, channels_max=limit), Session(Side.AGENT, channels_max=limit))
        self.chunk = bytes(range(256)) * (chunk // 256 + 1)
        self.size = chunk
        self.open: list[int] = []
        self.ended: set[int] = set()
        self.said: dict[tuple[Side, int], bytes] = {}
        self.heard: dict[tuple[Side, int], bytes] = {}
        self.events: list[tuple[int, str]] = []
        self.expected: list[tuple[int, str]] = []
        self.unread: list[tuple[Side, int, int]] = []

    def hear(self, side: Side, events: list) -> None:
        """Take what arrived at *side*."""
        for event in events:
            if isinstance(event, RequestReceived):
                self.open.append(event.channel)
            elif isinstance(event, DataReceived):
                key = (side, event.channel)
                self.heard[key] = self.heard.get(key, b"") + event.data
                self.unread.append((side, event.channel, len(event.data)))
            elif isinstance(event, StreamEnded | SignalReceived | ResultReceived):
                self.events.append((event.channel, type(event).__name__))

    def send(self, side: Side) -> None:
        """Let *side* send a chunk on the oldest channel that takes one."""
        session = self.wire.session(side)
        for channel in range(1, self.wire.connector._last_channel + 1):
            known = self.wire.agent.is_open(channel) and self.wire.connector.is_open(channel)
            if known and not (side is Side.CONNECTOR and channel in self.ended) and session.sendable(channel):
                said = self.said.get((side, channel), b"")
                data = self.chunk[len(said) % 251 :][: self.size]
                session.send_data(channel, data)
                self.said[side, channel] = said + data
                return

    def consume(self) -> None:
        """Let the readers use up what they have."""
        for side, channel, count in self.unread:
            self.wire.session(side).consume(channel, count)
        self.unread.clear()

    def step(self, name: str) -> None:
        wire = self.wire
        side = Side.CONNECTOR if name.endswith("up") else Side.AGENT
        other = Side.AGENT if side is Side.CONNECTOR else Side.CONNECTOR
        if name == "open" and wire.connector.can_open:
            wire.connector.open(STDIN)
        elif name == "answer" and self.open:
            channel = self.open.pop(0)
            wire.agent.send_result(channel, ExecResult(channel % 256))
            self.expected.append((channel, "ResultReceived"))
        elif name in ("end", "signal"):
            channel = wire.connector._last_channel
            if wire.connector.is_open(channel) and channel in self.open and channel not in self.ended:
                if name == "end":
                    wire.connector.send_end(channel)
                    self.ended.add(channel)
                else:
                    wire.connector.send_signal(channel, 15)
        elif name == "consume":
            self.consume()
        elif name.startswith("data"):
            self.send(side)
        elif name.startswith("write"):
            wire.write(side)
        elif name.startswith("arrive"):
            self.hear(other, wire.deliver(side))

    def finish(self) -> None:
        """Carry everything to its end."""
        while True:
            before = len(self.events), sum(map(len, self.heard.values())), len(self.open)
            self.consume()
            at_agent, at_connector = self.wire.settle(consume=False)
            self.hear(Side.AGENT, at_agent)
            self.hear(Side.CONNECTOR, at_connector)
            if not self.unread and before == (len(self.events), sum(map(len, self.heard.values())), len(self.open)):
                break
        while self.open:
            self.step("answer")
        at_agent, at_connector = self.wire.settle(consume=False)
        self.hear(Side.AGENT, at_agent)
        self.hear(Side.CONNECTOR, at_connector)


@reproducible(150)
@given(STEPS, st.sampled_from([1, 700, 60_000, 65_280]), st.integers(1, 4), st.data())
def test_moving_a_session_at_any_moment_loses_and_repeats_nothing(steps, chunk, limit, data):
    """Whatever was under way when one side or both moved, both streams, results and budgets come out exact."""
    life = Life(chunk, limit)
    for name in steps:
        if name == "move":
            wire = life.wire
            arrive = [data.draw(st.integers(0, 3)) for _ in range(2)]
            at_agent, at_connector = wire.cut(*arrive)
            life.hear(Side.AGENT, at_agent)
            life.hear(Side.CONNECTOR, at_connector)
            for side in data.draw(st.sets(st.sampled_from(list(Side)), min_size=1)):
                setattr(wire, side.value, moved(wire.session(side)))
            wire.resume()
        else:
            life.step(name)
    life.finish()
    for (side, channel), said in life.said.items():
        other = Side.AGENT if side is Side.CONNECTOR else Side.CONNECTOR
        heard = life.heard.get((other, channel), b"")
        if side is Side.AGENT:
            assert heard == said
        else:  # what came after the answer was dropped
            assert said.startswith(heard)
    assert sorted(event for event in life.events if event[1] == "ResultReceived") == sorted(life.expected)
    move(life.wire, *Side)  # the resume points acknowledge the last answers
    assert life.wire.connector.is_idle
    assert life.wire.agent.is_idle
    for side in Side:
        assert life.wire.session(side)._budget.reserved_bytes == 0


@reproducible(60)
@given(STEPS)
def test_moved_session_says_what_the_unmoved_one_says(steps):
    """With one channel, each record that a moved agent writes is byte for byte that of one that stayed."""
    stayed, went = Life(60_000, 1), Life(60_000, 1)
    for name in steps:
        if name == "move":
            stayed.wire.cut()
            stayed.wire.resume()
            move(went.wire, Side.AGENT)
        else:
            stayed.step(name)
            went.step(name)
        assert list(stayed.wire.flying[Side.AGENT]) == list(went.wire.flying[Side.AGENT])
        assert stayed.wire.agent.received == went.wire.agent.received
        assert stayed.wire.agent.retained_bytes == went.wire.agent.retained_bytes


def test_agent_moved_behind_a_closed_window_goes_on_when_it_opens():
    """Queue, window and BLOCKED survive the move."""
    wire = Wire()
    channel = opened(wire, STDIN)
    for _ in range(40):
        wire.agent.send_data(channel, b"x" * 60_000)
    _, first = wire.settle(consume=False)
    move(wire, Side.AGENT)
    wire.connector.consume(channel, len(content(first, channel)))
    _, rest = wire.settle()
    assert len(content(first, channel)) + len(content(rest, channel)) == 40 * 60_000


def test_grown_window_counts_against_the_budget_of_its_new_process():
    """Even one that is too small for it: what was granted cannot be taken back."""
    wire = Wire()
    opened(wire, STDIN)
    grown = wire.agent._budget.reserved_bytes
    assert grown > 0
    wire.cut()
    agent_budget = Budget(1)
    wire.agent = moved(wire.agent, budget=Budget(SESSION_BUDGET_BYTES, agent_budget))
    assert agent_budget.reserved_bytes == grown
    wire.resume()
    wire.agent.send_result(1, SUCCESS)
    wire.settle()
    assert agent_budget.reserved_bytes == 0


def test_moved_agent_lets_its_peer_have_the_channels_that_it_was_promised():
    """A successor with a lower limit ends no session for that."""
    wire = Wire(Session(Side.CONNECTOR, channels_max=5), Session(Side.AGENT, channels_max=5))
    wire.cut()
    wire.agent = moved(wire.agent, channels_max=2)
    wire.resume()
    for _ in range(5):
        wire.connector.open(STDIN)
    at_agent, _ = wire.settle()
    assert sum(isinstance(event, RequestReceived) for event in at_agent) == 5


def test_session_with_a_link_or_without_a_life_is_not_exported():
    wire = Wire()
    with pytest.raises(LocalProtocolError, match="cannot be handed over"):
        wire.agent.export()
    wire.cut()
    wire.agent.close()
    with pytest.raises(LocalProtocolError, match="cannot be handed over"):
        wire.agent.export()


def state(**changes) -> bytes:
    """Return the state of a session with one open channel, altered."""
    wire = Wire()
    opened(wire, STDIN)
    wire.cut()
    fields = msgpack.unpackb(wire.agent.export())
    for name, value in changes.items():
        fields[name] = value
    return msgpack.packb(fields)


def channel_state(**changes) -> list:
    return [msgpack.unpackb(state())["channels"][0] | changes]


FRAME = {"header": b"\x02\0\0\0\0\x01\0\x01", "body": b"x"}


def test_state_that_nobody_altered_is_taken():
    assert Session.restore(state()).is_open(1)
    assert Session.restore(state(retained=[FRAME])).retained_bytes == 9


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgpack.packb([1]),
        state()[:-1],
        state(version=2),
        state(side="both"),
        state(last_channel=0),
        state(received=-1),
        state(channels=channel_state() * 2),
        state(channels=channel_state(up="open")),
        state(channels=channel_state(sent=2**40)),
        state(channels=channel_state(consumed=1)),
        state(channels=channel_state(queue=[{"kind": 99, "stream": 0, "body": b""}])),
        state(channels=1),
        state(retained=[{"header": b"\x02\0\0\0\0\x01\0\x02", "body": b"x"}]),
        state(retained=[{"header": b"\x10\0\0\0\0\0\0\x01", "body": b"x"}]),
        state(requests=[]),
        state(requests={"1": "exec"}),
        state(requests={1: "dance"}),
    ],
)
def test_state_that_is_not_understood_is_refused(data):
    """Another version, another shape, values that cannot be: an error that a caller can expect, and no session."""
    with pytest.raises(RemoteProtocolError):
        Session.restore(data)


def test_refusal_of_another_version_names_what_was_expected():
    with pytest.raises(MessageInvalid, match="version is not from 1 to 1"):
        Session.restore(state(version=2))
