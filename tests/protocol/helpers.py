"""Two sessions without a network: records are carried, held back and lost by hand."""

from __future__ import annotations

from collections import deque

from hypothesis import settings

from pyinfra_agent_protocol._events import DataReceived
from pyinfra_agent_protocol._frames import Frame, FrameType, encode_header, split_frames
from pyinfra_agent_protocol._messages import Exec, ExecResult
from pyinfra_agent_protocol._session import Session, Side

COMMAND = Exec((b"true",))
SUCCESS = ExecResult(0)


def reproducible(examples: int, **more) -> settings:
    """Settings of a property test: the same examples in every run, and no clock on a busy machine."""
    return settings(max_examples=examples, deadline=None, derandomize=True, database=None, **more)


def frame(kind: FrameType, channel: int = 0, body: bytes = b"", stream: int = 0) -> bytes:
    """Return one frame as it stands in a record."""
    return encode_header(kind, stream, channel, len(body)) + body


def kinds(record: bytes | None) -> list[FrameType]:
    """Return the types of a record's frames."""
    return [entry.kind for entry in split_frames(record or b"")]


def frames(record: bytes | None, kind: FrameType) -> list[Frame]:
    """Return a record's frames of one type."""
    return [entry for entry in split_frames(record or b"") if entry.kind is kind]


class Wire:
    """Two sessions and the records under way between them.

    Everything in flight can be lost at any point: `cut` delivers a prefix of each direction, as TCP
    does, and `resume` makes a new link from the resume points that both ends state.
    """

    def __init__(self, connector: Session | None = None, agent: Session | None = None) -> None:
        self.connector = connector if connector is not None else Session(Side.CONNECTOR)
        self.agent = agent if agent is not None else Session(Side.AGENT)
        self.flying: dict[Side, deque[bytes]] = {Side.CONNECTOR: deque(), Side.AGENT: deque()}
        self.resume()

    def session(self, side: Side) -> Session:
        return self.connector if side is Side.CONNECTOR else self.agent

    def resume(self) -> None:
        """Attach both to a new link; neither has one."""
        connector_received, agent_received = self.connector.received, self.agent.received
        self.connector.attach(agent_received)
        self.agent.attach(connector_received)

    def write(self, side: Side) -> bytes | None:
        """Put the next record of *side* on the wire, if it has one."""
        session = self.session(side)
        promised = session.has_data_to_send
        record = session.next_record()
        assert (record is not None) == promised, "has_data_to_send tells whether there is a record"
        if record is not None:
            self.flying[side].append(record)
        return record

    def deliver(self, side: Side) -> list:
        """Let the oldest record that *side* has written arrive; return the other side's events."""
        other = self.agent if side is Side.CONNECTOR else self.connector
        return other.receive_record(self.flying[side].popleft()) if self.flying[side] else []

    def cut(self, upward: int = 0, downward: int = 0) -> tuple[list, list]:
        """Lose the link after so many of the records under way; return what still arrived, agent's first."""
        at_agent = [event for _ in range(upward) for event in self.deliver(Side.CONNECTOR)]
        at_connector = [event for _ in range(downward) for event in self.deliver(Side.AGENT)]
        self.flying[Side.CONNECTOR].clear()
        self.flying[Side.AGENT].clear()
        self.connector.detach()
        self.agent.detach()
        return at_agent, at_connector

    def settle(self, *, consume: bool = True) -> tuple[list, list]:
        """Carry records both ways until both are quiet; return the events, agent's first."""
        at_agent: list = []
        at_connector: list = []
        while True:
            while self.write(Side.CONNECTOR) or self.write(Side.AGENT):
                pass
            if not (self.flying[Side.CONNECTOR] or self.flying[Side.AGENT]):
                return at_agent, at_connector
            for side, events in ((Side.CONNECTOR, at_agent), (Side.AGENT, at_connector)):
                receiver = self.agent if side is Side.CONNECTOR else self.connector
                while self.flying[side]:
                    arrived = self.deliver(side)
                    events += arrived
                    for event in arrived:
                        if consume and isinstance(event, DataReceived):
                            receiver.consume(event.channel, len(event.data))


def opened(wire: Wire, request=COMMAND) -> int:
    """Open a channel and let the request arrive."""
    channel = wire.connector.open(request)
    wire.settle()
    return channel


def content(events: list, channel: int, stream: int = 0) -> bytes:
    """Return what arrived on one stream."""
    return b"".join(
        event.data
        for event in events
        if isinstance(event, DataReceived) and (event.channel, event.stream) == (channel, stream)
    )
