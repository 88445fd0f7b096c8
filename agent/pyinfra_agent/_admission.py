"""Connections that have not yet proved who they are: few, for a short time, and nobody is locked out.

When the pool is full, one connection makes room: of the source that holds most of the pool, one of those that have
come least far, chosen at random. "The oldest goes" would be a denial of service: a scanner opens thousands of
connections a second, so a newcomer would live for milliseconds. A controller speaks at once, and so outlives those who
do not even behind the same address as they; and once it was answered it outlives those who have only spoken, of whom a
scanner can make thousands a second, while the agent answers a few. That is for a second, in which a controller has long
gone on: whoever was answered and has not by then is the first to go.

A source whose connections came to nothing is remembered for a while. That costs it nothing while the pool is less than
half full; above, its newcomers make room for each other, and the other half is for sources that did no harm.
"""

from __future__ import annotations

import enum
import ipaddress
import secrets
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Admission", "Progress", "Seat", "source_of"]

_IPV6_SOURCE_BITS: Final = 64
#: How long a source is remembered whose connection came to nothing, and how many sources are.
_MEMORY_SECONDS: Final = 10.0
_MEMORY_SOURCES: Final = 4096
#: In which whoever was answered has to make room last.
_GRACE_SECONDS: Final = 1.0


@lru_cache(maxsize=4096)
def _source_of_host(host: str) -> str:
    try:
        parsed = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, _IPV6_SOURCE_BITS), strict=False))
    return str(parsed)


def source_of(peer: str) -> str:
    """Return what counts as one source: an IPv4 address, or an IPv6 /64, which is one customer or one link.

    *peer* is `host:port`, IPv6 in brackets; a peer has as many ports as it likes.
    """
    return _source_of_host(peer.rpartition(":")[0].strip("[]")) or peer


class Progress(enum.IntEnum):
    """How far a connection has come; the number is its place in a source's lists."""

    SILENT = 0
    SPOKEN = 1
    """It began as a controller does."""
    ANSWERED = 2
    """It was sent message 2."""


class Seat:
    """One connection's place in the pool; made by `Admission.enter`."""

    __slots__ = ("answered_at", "has_failed", "index", "is_taken", "progress", "source", "when_evicted")

    def __init__(self, source: str, progress: Progress, when_evicted: Callable[[], object]) -> None:
        self.source = source
        self.progress = progress
        #: Its connection came to nothing, and not because it only looked, as discovery does.
        self.has_failed = False
        #: False once it had to make room.
        self.is_taken = True
        #: Called then.
        self.when_evicted = when_evicted
        self.answered_at = 0.0
        #: Where it stands among those of its source that have come as far, if it was not answered.
        self.index = 0


class _Source:
    """The seats of one source; each change takes the same time however many they are."""

    __slots__ = ("answered", "count", "others")

    def __init__(self) -> None:
        self.count = 0
        self.others: tuple[list[Seat], list[Seat]] = ([], [])
        #: In the order in which they were.
        self.answered: dict[Seat, None] = {}

    def add(self, seat: Seat) -> None:
        self.count += 1
        if seat.progress is Progress.ANSWERED:
            self.answered[seat] = None
        else:
            seats = self.others[seat.progress]
            seat.index = len(seats)
            seats.append(seat)

    def remove(self, seat: Seat) -> None:
        self.count -= 1
        if seat.progress is Progress.ANSWERED:
            del self.answered[seat]
        else:
            seats = self.others[seat.progress]
            last = seats.pop()
            if last is not seat:
                seats[seat.index], last.index = last, seat.index

    def victim(self) -> Seat:
        """Return who is to make room."""
        first = next(iter(self.answered), None)
        if first is not None and first.answered_at + _GRACE_SECONDS <= trio.current_time():
            return first
        for seats in self.others:
            if seats:
                return secrets.choice(seats)
        return secrets.choice(list(self.answered))


class Admission:
    """The pool of connections that are shaking hands, at most *most* of them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._sources: dict[str, _Source] = {}
        self._count = 0
        self._harmful: dict[str, float] = {}

    def enter(self, peer: str, when_evicted: Callable[[], object], *, has_spoken: bool = False) -> Seat:
        """Give a connection from *peer* (`host:port`) a seat; somebody may lose his for it, and it may be this one."""
        seat = Seat(source_of(peer), Progress.SPOKEN if has_spoken else Progress.SILENT, when_evicted)
        self._seats_of(seat.source).add(seat)
        self._count += 1
        if self._count > self._most:
            self._evict_of(max(self._sources, key=lambda source: self._sources[source].count))
        elif self._count > self._most // 2 and self._is_harmful(seat.source):
            self._evict_of(seat.source)
        return seat

    def hear(self, seat: Seat) -> None:
        """Note that its connection has begun as a controller does."""
        self._advance(seat, Progress.SPOKEN)

    def answer(self, seat: Seat) -> None:
        """Note that its connection was answered."""
        seat.answered_at = trio.current_time()
        self._advance(seat, Progress.ANSWERED)

    def leave(self, seat: Seat) -> None:
        """Take the seat back."""
        if seat.has_failed:
            self._remember(seat.source)
        if seat.is_taken:
            seat.is_taken = False
            self._remove(seat)

    @contextmanager
    def handshake(self, seat: Seat, seconds: float) -> Iterator[trio.CancelScope]:
        """Bound the handshake of whoever has *seat* to *seconds*; cancelled earlier if it has to make room."""
        try:
            with trio.move_on_after(seconds) as scope:
                seat.when_evicted = scope.cancel
                if not seat.is_taken:
                    scope.cancel()
                yield scope
            seat.has_failed |= scope.cancelled_caught
        finally:
            self.leave(seat)

    def _evict_of(self, source: str) -> None:
        victim = self._sources[source].victim()
        victim.is_taken = False
        self._remove(victim)
        self._remember(source)
        victim.when_evicted()

    def _advance(self, seat: Seat, progress: Progress) -> None:
        if seat.is_taken and seat.progress < progress:
            self._sources[seat.source].remove(seat)
            seat.progress = progress
            self._sources[seat.source].add(seat)

    def _remove(self, seat: Seat) -> None:
        self._count -= 1
        seats = self._sources[seat.source]
        seats.remove(seat)
        if not seats.count:
            del self._sources[seat.source]

    def _seats_of(self, source: str) -> _Source:
        found = self._sources.get(source)
        if found is None:
            found = self._sources[source] = _Source()
        return found

    def _is_harmful(self, source: str) -> bool:
        return self._harmful.get(source, 0.0) > trio.current_time()

    def _remember(self, source: str) -> None:
        # The front is what was remembered longest ago.
        self._harmful.pop(source, None)
        self._harmful[source] = trio.current_time() + _MEMORY_SECONDS
        if len(self._harmful) > _MEMORY_SOURCES:
            del self._harmful[next(iter(self._harmful))]
