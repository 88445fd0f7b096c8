"""Accepting connections faster than one machine can open them.

A task for each connection would be too dear: with a scanner at work the kernel's queue would fill, and whoever stands
in it or behind it would wait. So connections are taken in batches, each gets its seat (`_admission`), and gets a task
only once something has come from it. Until then one task and one epoll descriptor watch them all.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from typing import TYPE_CHECKING, Final, Protocol

import trio

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
_SWEEP_SECONDS: Final = 1.0

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


class Lobby:
    """Connections that have a seat and have not said a word; whoever does is handed to *serve*, which must not wait.

    Use it within `with`, and let `run_forever` run meanwhile.
    """

    def __init__(
        self, admission: Admission, seconds: float, serve: Callable[[socket.socket, str, Seat], object]
    ) -> None:
        self._admission = admission
        self._seconds = seconds
        self._serve = serve
        self._epoll = select.epoll()
        # In the order in which they came; one that lost its seat is closed, and its number may be another's by now.
        self._waiting: dict[int, tuple[socket.socket, str, Seat, float]] = {}

    def __enter__(self) -> Lobby:
        return self

    def __exit__(self, *exception: object) -> None:
        for connection, *_ in self._waiting.values():
            connection.close()
        self._epoll.close()

    def take(self, connection: socket.socket, peer: str) -> None:
        """Give a new connection its seat, and wait for its first word."""
        number = connection.fileno()
        is_speaking = _speaks(connection)

        def leave() -> None:
            self._waiting.pop(number, None)
            connection.close()

        seat = self._admission.enter(peer, leave, has_spoken=is_speaking)
        if not seat.is_taken:
            return
        if is_speaking:
            self._serve(connection, peer, seat)
        else:
            self._waiting[number] = (connection, peer, seat, trio.current_time() + self._seconds)
            self._epoll.register(number, select.EPOLLIN | select.EPOLLRDHUP)

    async def run_forever(self) -> None:
        """Hand over those who speak, and close those who do not in time."""
        while True:
            with trio.move_on_after(_SWEEP_SECONDS):
                await trio.lowlevel.wait_readable(self._epoll.fileno())
            for number, _ in self._epoll.poll(0):
                connection, peer, seat, _ = self._waiting.pop(number)
                self._epoll.unregister(number)
                self._serve(connection, peer, seat)
            now = trio.current_time()
            for number, (connection, _, seat, until) in list(self._waiting.items()):
                if until > now:
                    break
                del self._waiting[number]
                seat.has_failed = True
                self._admission.leave(seat)
                connection.close()


async def accept_forever(
    listener: SocketSource,
    lobby: Lobby,
    took_turn: Callable[[], object] = lambda: None,
) -> None:
    """Accept connections of *listener*, which is not closed here, until cancelled; *took_turn* after each batch."""
    # trio's own socket accepts one at a time. The duplicate shares everything with it, its being non-blocking too.
    with socket.socket(fileno=os.dup(listener.socket.fileno())) as accepting:
        accepting.setblocking(False)
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


def _speaks(connection: socket.socket) -> bool:
    """Tell whether what a controller says first is there already."""
    try:
        return connection.recv(len(_MAGIC), socket.MSG_PEEK | socket.MSG_DONTWAIT) == _MAGIC
    except OSError:
        return False
