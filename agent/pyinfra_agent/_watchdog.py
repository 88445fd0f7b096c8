"""The watchdog is fed only while the agent would serve a controller: each part of it is tried, time and again.

A process that merely runs proves nothing. So the accept loop has to take what waits for it, the table of sessions has
to answer, and a command has to start, end and be seen to end. A part that *fails* is in order: without memory or
descriptors the agent says so to its controllers, and a restart would only lose what it knows. A part that does not
answer is not, and the service manager starts the agent anew.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Final

import trio

from ._log import log
from ._notify import notify_alive
from ._spawn import Command, SpawnFailed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from ._supervisor import Supervisor

__all__ = ["ObservedListener", "feed_watchdog", "try_to_spawn"]

#: Three tries before the time is up.
_TRIES: Final = 3
_LOOK_SECONDS: Final = 0.1
_PROGRAM: Final = b"/bin/true"


class ObservedListener(trio.abc.AsyncResource):
    """A listening socket that knows whether somebody takes its connections."""

    def __init__(self, listener: trio.SocketListener) -> None:
        self._listener = listener
        self._turns = 0

    @property
    def socket(self) -> trio.socket.SocketType:
        """The socket that it listens on."""
        return self._listener.socket

    async def aclose(self) -> None:
        """Close the socket."""
        await self._listener.aclose()

    def note_turn(self) -> None:
        """Note that who waits was looked at; also if nobody could be taken, for want of descriptors."""
        self._turns += 1

    async def wait_served(self) -> None:
        """Return once nobody waits, somebody had a turn since, or the agent has stopped listening."""
        turns = self._turns
        while turns == self._turns and self._has_waiting():  # noqa: ASYNC110 - the kernel is asked, no task of ours
            await trio.sleep(_LOOK_SECONDS)

    def _has_waiting(self) -> bool:
        # Looked at in the kernel: a connection to ourselves could be refused by a firewall, and prove nothing.
        if self.socket.fileno() < 0:
            return False
        asked = select.poll()
        asked.register(self.socket.fileno(), select.POLLIN)
        return bool(asked.poll(0))


async def try_to_spawn(supervisor: Supervisor) -> None:
    """Run a command that does nothing, to its end."""
    try:
        process = supervisor.spawn(Command(argv=(_PROGRAM,), env={}))
    except SpawnFailed:  # an answer
        return
    try:
        await process.wait()
    finally:
        process.abandon()


async def feed_watchdog(
    seconds: float, parts: Mapping[str, Callable[[], Awaitable[object]]], describe: Callable[[], str]
) -> None:
    """Feed the watchdog, which waits *seconds*, while all *parts* return in time; *describe* says what goes on."""
    interval = seconds / _TRIES
    while True:
        silent = None
        with trio.move_on_after(interval) as scope:
            for name, part in parts.items():
                silent = name
                await part()
        if scope.cancelled_caught:
            log("no-answer", part=silent, seconds=f"{interval:g}")
        else:
            notify_alive(describe())
        await trio.sleep(interval)
