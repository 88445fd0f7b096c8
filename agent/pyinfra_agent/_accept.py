"""Accepting connections faster than one machine can open them, and shaking hands with all sources in turn.

A task for each connection would be too dear: with a scanner at work the kernel's queue would fill, and whoever stands
in it or behind it would wait. So connections are taken in batches, each gets its seat (`_admission`), and gets a task
only once something has come from it. Until then one task and one epoll descriptor watch them all.

Even whoever says something gets its task only when its turn has come. A handshake costs far more than it costs to ask
for one, so in each turn of the event loop one begins, of each source in turn: between two of them connections are
accepted, and a source that asks for a thousand waits for itself alone.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import select
import socket
from typing import TYPE_CHECKING, Final, Protocol

import trio

from ._admission import source_of
from ._limits import RareLog

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._admission import Admission, Seat

__all__ = ["Lobby", "SocketSource", "accept_forever", "format_address"]

_BATCH: Final = 256
_MAGIC: Final = b"pyinfra-agent"
#: No descriptors, no memory: connections wait in the kernel until there are.
_SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_SHORTAGE_SECONDS: Final = 0.1

_failed: Final = RareLog("accept-failed")


class SocketSource(Protocol):
    """A listener: a trio one, or one that is watched."""

    @property
    def socket(self) -> trio.socket.SocketType:
        """The socket that it listens on."""


def format_address(address: tuple[object, ...]) -> str:
    """Return a socket address as people write it: `host:port`, IPv6 in brackets."""
    host, port = str(address[0]), address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Word(enum.Enum):
    """What has come from a connection that nobody has read from."""

    NOTHING = enum.auto()
    GONE = enum.auto()
    """It was closed."""
    BROKEN = enum.auto()
    OPENING = enum.auto()
    """What a controller says first."""
    OTHER = enum.auto()


class _Guest:
    """One connection in the lobby."""

    __slots__ = ("connection", "peer", "seat", "until")

    def __init__(self, connection: socket.socket, peer: str, seat: Seat, until: float) -> None:
        self.connection = connection
        self.peer = peer
        self.seat = seat
        self.until = until


class Lobby:
    """Connections that have a seat and no task yet; those who speak are handed to *serve*, which must not wait.

    Use it within `with`, and let `run_forever` run meanwhile.
    """

    def __init__(
        self, admission: Admission, seconds: float, serve: Callable[[socket.socket, str, Seat], object]
    ) -> None:
        self._admission = admission
        self._seconds = seconds
        self._serve = serve
        self._epoll = select.epoll()
        # By descriptor. In the order in which they came; one that lost its seat is closed, and its number may be
        # another's by now.
        self._silent: dict[int, _Guest] = {}
        # By source, the one whose turn is next first. There are no more of them than seats.
        self._speaking: dict[str, dict[int, _Guest]] = {}
        self._somebody_is_silent = trio.lowlevel.ParkingLot()
        self._somebody_speaks = trio.lowlevel.ParkingLot()

    def __enter__(self) -> Lobby:
        return self

    def __exit__(self, *exception: object) -> None:
        for guests in (self._silent, *self._speaking.values()):
            for guest in guests.values():
                guest.connection.close()
        self._epoll.close()

    def take(self, connection: socket.socket, peer: str) -> None:
        """Give a new connection its seat, and wait for its first word."""
        word = _first_word(connection)
        if word in (_Word.GONE, _Word.BROKEN):
            connection.close()
            return
        number = connection.fileno()

        def leave() -> None:
            self._forget(number, source_of(peer))
            connection.close()

        seat = self._admission.enter(peer, leave, has_spoken=word is _Word.OPENING)
        if not seat.is_taken:
            return
        guest = _Guest(connection, peer, seat, trio.current_time() + self._seconds)
        if word is _Word.NOTHING:
            self._silent[number] = guest
            self._epoll.register(number, select.EPOLLIN | select.EPOLLRDHUP)
            self._somebody_is_silent.unpark()
        else:
            self._queue(number, guest)

    async def run_forever(self) -> None:
        """Hand over those who speak, source by source, and close those who do not in time."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._give_turns)
            nursery.start_soon(self._sweep_forever)
            while True:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                for number, _ in self._epoll.poll(0):
                    self._hear(number, self._silent[number])

    async def _sweep_forever(self) -> None:
        while True:
            while not self._silent:
                await self._somebody_is_silent.park()
            await trio.sleep_until(next(iter(self._silent.values())).until)
            now = trio.current_time()
            for number, guest in list(self._silent.items()):
                if guest.until > now:
                    break
                self._forget(number, guest.seat.source)
                self._dismiss(guest, has_failed=True)

    async def _give_turns(self) -> None:
        while True:
            while not self._speaking:
                await self._somebody_speaks.park()
            source, guests = next(iter(self._speaking.items()))
            number = next(iter(guests))
            guest = guests[number]
            self._forget(number, source)
            if guests:  # behind all others
                self._speaking[source] = self._speaking.pop(source)
            self._serve(guest.connection, guest.peer, guest.seat)
            await trio.lowlevel.checkpoint()

    def _hear(self, number: int, guest: _Guest) -> None:
        self._forget(number, guest.seat.source)
        word = _first_word(guest.connection)
        if word in (_Word.GONE, _Word.BROKEN):
            self._dismiss(guest, has_failed=word is _Word.BROKEN)
            return
        if word is _Word.OPENING:
            self._admission.hear(guest.seat)
        self._queue(number, guest)

    def _queue(self, number: int, guest: _Guest) -> None:
        self._speaking.setdefault(guest.seat.source, {})[number] = guest
        self._somebody_speaks.unpark()

    def _forget(self, number: int, source: str) -> None:
        if self._silent.pop(number, None) is not None:
            # Closing it is not enough while a process that is being started has it, too.
            self._epoll.unregister(number)
        elif (guests := self._speaking.get(source)) is not None:
            guests.pop(number, None)
            if not guests:
                del self._speaking[source]

    def _dismiss(self, guest: _Guest, *, has_failed: bool) -> None:
        guest.seat.has_failed = has_failed
        self._admission.leave(guest.seat)
        guest.connection.close()


async def accept_forever(
    listener: SocketSource,
    lobby: Lobby,
    took_turn: Callable[[], object] = lambda: None,
) -> None:
    """Accept connections of *listener*, which is not closed here, until cancelled; *took_turn* after each batch."""
    # trio's own socket accepts one at a time. The duplicate shares everything with it, its being non-blocking too.
    with socket.socket(fileno=os.dup(listener.socket.fileno())) as accepting:
        accepting.setblocking(False)
        _keep_silent_ones_out(accepting)
        while True:
            await trio.lowlevel.wait_readable(accepting)
            shortage = False
            for _ in range(_BATCH):
                try:
                    connection, address = accepting.accept()
                except BlockingIOError:
                    break
                except OSError as error:
                    shortage = error.errno in _SHORTAGES
                    if shortage:
                        _failed.note(error=error.strerror)
                        break
                    continue  # it was gone before it was accepted
                lobby.take(connection, format_address(address))
            took_turn()
            if shortage:
                await trio.sleep(_SHORTAGE_SECONDS)


def _keep_silent_ones_out(listening: socket.socket) -> None:
    """Let the kernel keep connections on which nothing was said, for a second; a controller speaks at once.

    Whoever opens connections and forgets them costs us nothing that way, as long as the kernel's own queue has room.
    """
    if hasattr(socket, "TCP_DEFER_ACCEPT"):
        with contextlib.suppress(OSError):
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1)


def _first_word(connection: socket.socket) -> _Word:
    try:
        said = connection.recv(len(_MAGIC), socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return _Word.NOTHING
    except OSError:
        return _Word.BROKEN
    if not said:
        return _Word.GONE
    return _Word.OPENING if said == _MAGIC else _Word.OTHER
