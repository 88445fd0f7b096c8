"""A network that breaks on purpose: a TCP proxy that commits faults, each at a byte that was chosen before."""

from __future__ import annotations

import enum
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import gevent
from gevent import socket
from gevent.event import Event
from gevent.pool import Group
from gevent.server import StreamServer

if TYPE_CHECKING:
    import random

LOCALHOST: Final = "127.0.0.1"
READ_BYTES: Final = 16 * 1024
SEGMENT_BYTES: Final = 1400
UP: Final = "up"
DOWN: Final = "down"
_RESET_AT_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER for no time: close() sends RST


class Fault(enum.Enum):
    """What happens to the link on which the byte passes."""

    RESET = "both ends are reset"
    CLOSE = "both ends are closed in order"
    HALF_CLOSE = "this direction ends in order, and what still comes is thrown away; the other lives on"
    CORRUPT = "one bit of the byte is flipped"
    DELAY = "this direction pauses"
    STALL = "nothing passes any more in either direction, and both ends stay open"
    OVERTAKE = "the controller's end is reset, and what it had sent reaches the agent later than the next link"


DEADLY: Final = (Fault.RESET, Fault.CLOSE, Fault.HALF_CLOSE, Fault.OVERTAKE)
"""Faults that both a controller and an agent notice by themselves, whatever else is said on the link."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A fault to come: before byte number *at* of all that pass in *direction*, over all links or on *link* alone."""

    fault: Fault
    direction: str
    at: int
    seconds: float = 0.0
    link: int | None = None


@dataclass(eq=False)
class _Link:
    number: int
    controller: socket.socket
    agent: socket.socket
    passed: dict[str, int] = field(default_factory=lambda: {UP: 0, DOWN: 0})
    is_stalled: bool = False

    def ends(self, direction):
        return (self.controller, self.agent) if direction == UP else (self.agent, self.controller)

    def close(self):
        for end in (self.controller, self.agent):
            end.close()

    def reset(self):
        for end in (self.controller, self.agent):
            reset(end)


class _LinkEnded(Exception):
    """A fault ended this direction of a link."""


class FaultProxy:
    """Carries connections to *port* on 127.0.0.1, and commits the faults that it was told to `plan`.

    Args:
        port: where the agent listens.
        source: the address from which the agent sees us.

    Attributes:
        links: connections that were carried so far.
        received: bytes that came in, by direction.
        passed: bytes that went on, by direction.
        committed: faults that have happened.
        segment_seconds: pause after each 1,400 bytes, as on a slow link.
    """

    def __init__(self, port, source=LOCALHOST):
        self._agent_port = port
        self._source = source
        self._server = StreamServer((LOCALHOST, 0), self._serve)
        self._links = set()
        self._pumps = Group()
        self._planned = []
        self._never = Event()
        self.links = 0
        self.received = {UP: 0, DOWN: 0}
        self.passed = {UP: 0, DOWN: 0}
        self.committed = []
        self.segment_seconds = 0.0

    @property
    def port(self):
        return self._server.server_port

    @property
    def planned(self):
        """How many faults are still to come."""
        return len(self._planned)

    def plan(self, fault, direction, after, seconds=0.0):
        """Commit *fault* once another *after* bytes have passed in *direction*."""
        self._planned.append(Planned(fault, direction, self.passed[direction] + after, seconds))

    def plan_on_next_link(self, fault, direction, after, seconds=0.0):
        """Commit *fault* on the link after the present one, once *after* bytes have passed there in *direction*."""
        self._planned.append(Planned(fault, direction, after, seconds, self.links + 1))

    def plan_any(self, rng: random.Random, faults, up_bytes, down_bytes):
        """Plan one of *faults* at one byte of so many in either direction; return what was chosen, for a message."""
        fault = rng.choice(faults)
        direction = rng.choice((UP, DOWN)) if fault is not Fault.OVERTAKE else UP
        after = rng.randrange(up_bytes if direction == UP else down_bytes)
        self.plan(fault, direction, after, rng.uniform(0.01, 0.2))
        return f"{fault.name} {direction} after {after} bytes"

    def forget_plans(self):
        self._planned.clear()

    def reset_all(self):
        """Reset every link now."""
        for link in tuple(self._links):
            link.reset()

    def _serve(self, controller, address):
        self.links += 1
        number = self.links
        try:
            agent = socket.create_connection((LOCALHOST, self._agent_port), source_address=(self._source, 0))
        except OSError:
            reset(controller)
            return
        link = _Link(number, controller, agent)
        for end in (controller, agent):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._links.add(link)
        pumps = [self._pumps.spawn(self._pump, link, direction) for direction in (UP, DOWN)]
        gevent.joinall(pumps)
        link.close()
        self._links.discard(link)

    def _pump(self, link, direction):
        source, sink = link.ends(direction)
        with suppress(OSError, _LinkEnded):
            while data := source.recv(READ_BYTES):
                self.received[direction] += len(data)
                while data:
                    self._wait_if_stalled(link)
                    planned, count = self._take_due(link, direction, len(data))
                    part, data = data[:count], data[count:]
                    self.passed[direction] += count
                    link.passed[direction] += count
                    self._send(sink, part)
                    if planned is not None:
                        data = self._commit(planned, link, data)
            self._wait_if_stalled(link)
            sink.shutdown(socket.SHUT_WR)

    def _send(self, sink, data):
        if not self.segment_seconds:
            sink.sendall(data)
            return
        for start in range(0, len(data), SEGMENT_BYTES):
            sink.sendall(data[start : start + SEGMENT_BYTES])
            gevent.sleep(self.segment_seconds)

    def _take_due(self, link, direction, count):
        """Return the first fault that is due within *count* bytes and how many pass before it; None and all of them."""
        due = [
            (max(0, planned.at - (self if planned.link is None else link).passed[direction]), index)
            for index, planned in enumerate(self._planned)
            if planned.direction == direction and planned.link in (None, link.number)
        ]
        before, index = min(due, default=(count, 0))
        return (self._planned.pop(index), before) if before < count else (None, count)

    def _wait_if_stalled(self, link):
        if link.is_stalled:
            self._never.wait()

    def _commit(self, planned, link, data):
        """Commit a fault before *data*; return what is left to be sent."""
        self.committed.append(planned)
        source, sink = link.ends(planned.direction)
        if planned.fault is Fault.CORRUPT:
            return bytes((data[0] ^ 0x40,)) + data[1:]
        if planned.fault is Fault.DELAY:
            gevent.sleep(planned.seconds)
            return data
        if planned.fault is Fault.STALL:
            link.is_stalled = True
            return data
        if planned.fault is Fault.RESET:
            link.reset()
        elif planned.fault is Fault.CLOSE:
            link.close()
        elif planned.fault is Fault.OVERTAKE:
            reset(link.controller)
            gevent.sleep(planned.seconds)
            sink.sendall(data)
        elif planned.fault is Fault.HALF_CLOSE:
            sink.shutdown(socket.SHUT_WR)
            while source.recv(READ_BYTES):
                pass
        raise _LinkEnded

    def __enter__(self):
        self._server.start()
        return self

    def __exit__(self, *exc):
        self._server.stop(timeout=0.1)
        self.reset_all()
        self._pumps.kill()


def reset(sock):
    """Close *sock* with a RST instead of a FIN."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
    sock.close()
