"""One link: the greenlets that carry a session over an opened socket.

The writer greenlet alone waits for the socket, so a `gevent.Timeout` in a caller can never leave half
a record on the wire.  The reader never waits for a caller.  An exception in either ends the link.
"""

from __future__ import annotations

import contextlib
import os
import select as plain_select
import time
from typing import TYPE_CHECKING, Any, Final

import gevent
from gevent import monkey, socket
from gevent.event import Event
from gevent.monkey import get_original

from pyinfra_agent_protocol import RecordInvalid, RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyinfra_agent_protocol import Event as SessionEvent
    from pyinfra_agent_protocol import Session

    from ._opening import Opened

__all__ = ["Link"]

# The system's, also where gevent has put its own in its place.
_poll: Final = get_original("select", "poll")

#: One buffer is read into again and again, a larger one once the first was full: most links never need that.
_FIRST_READ_BYTES: Final = 16 * 1024
_READ_BYTES: Final = 256 * 1024
#: So much that was read is worth a turn of those who want it.
_USED_BYTES: Final = 192 * 1024
_WRITE_BYTES: Final = 128 * 1024
#: Silence after which the agent is asked for a sign of life, idle and with a request outstanding.
_KEEPALIVE_SECONDS: Final = (15.0, 5.0)
_KEEPALIVE_MISSED: Final = 3
#: Part of a record is a sign of life too, as on a slow link, but no less than this: into a record whose length was
#: corrupted PONGs trickle for hours.
_ALIVE_BYTES: Final = 512
#: How long a reader goes on before it lets others run, and for how long.
_TURN_SECONDS: Final = 0.05
_YIELD_SECONDS: Final = 0.000_1


class Link:
    """Carries *session* over an opened socket until it is lost; then calls *on_lost* once, with the reason.

    Args:
        on_event: gets each event of the session; must not wait.
        on_room: called after records were written or received: there may be room for more.
        on_lost: gets the reason, and whether the agent broke the protocol, which ends the session.
    """

    def __init__(
        self,
        opened: Opened,
        session: Session,
        on_event: Callable[[SessionEvent], None],
        on_room: Callable[[], None],
        on_lost: Callable[[str, bool], None],
    ) -> None:
        self._sock = opened.sock
        self._transport = opened.transport
        self._session = session
        self._on_event = on_event
        self._on_room = on_room
        self._on_lost = on_lost
        self._work = Event()
        self._is_writer_idle = False
        self._room = _poll()
        self._room.register(self._sock.fileno(), plain_select.POLLOUT)
        #: Encrypted, and not taken by the socket.
        self._rest = bytearray()
        self._has_heard = True
        self._is_lost = False
        self._early = opened.records
        self._buffer = memoryview(bytearray(_FIRST_READ_BYTES))
        self._greenlets: list[Any] = []

    def start(self) -> None:
        """Begin to read and write; the session must be attached."""
        self._greenlets = [gevent.spawn(run) for run in (self._read, self._write, self._keep_alive)]

    def wake_writer(self) -> None:
        """Let the writer look whether there is something to send."""
        self._work.set()

    @property
    def is_lost(self) -> bool:
        """True once nothing more is read or written here."""
        return self._is_lost

    def close(self) -> None:
        """Drop the link without a word and without `on_lost`; nothing is read from it when this returns."""
        self._is_lost = True
        gevent.killall([greenlet for greenlet in self._greenlets if greenlet is not gevent.getcurrent()], block=False)
        self._sock.close()

    def drop_in_child(self) -> None:
        """In a forked child: let go of the socket, which stays the parent's.

        Both would count the same nonces on: the child must never encrypt on this link.
        """
        self._is_lost = True
        # Replaced and not closed: gevent would close it when the child's loop runs, if ever, and libev aborts a process
        # in which a greenlet still waits for a descriptor that is gone.
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        with contextlib.suppress(OSError):
            os.dup2(null, self._sock.fileno(), inheritable=False)
        monkey.get_original("os", "close")(null)

    def _lose(self, reason: str, *, broken: bool = False) -> None:
        if not self._is_lost:
            self.close()
            self._on_lost(reason, broken)

    def _read(self) -> None:
        records, self._early = self._early, []
        turn_ends = 0.0
        unused_bytes = 0
        try:
            while True:
                for record in records:
                    for event in self._session.receive_record(record):
                        self._on_event(event)
                if self._session.has_data_to_send:
                    self._work.set()
                self._on_room()
                if time.monotonic() > turn_ends:
                    # recv() lets nobody else run while there is something to read: an agent that never stops talking
                    # would stop every other host. Not sleep(0): gevent may take a thousand before it looks at a timer.
                    gevent.sleep(_YIELD_SECONDS)
                    turn_ends = time.monotonic() + _TURN_SECONDS
                if unused_bytes >= _USED_BYTES:
                    # Whoever wants it takes it while it is in the processor's cache, and before megabytes wait.
                    gevent.sleep(0)
                    unused_bytes = 0
                wanted = min(len(self._buffer), self._transport.read_size(_READ_BYTES))
                count = self._sock.recv_into(self._buffer, wanted)
                if not count:
                    self._lose("the agent closed the connection")
                    return
                unused_bytes += count
                records = self._transport.receive_data(self._buffer[:count])
                if records or count >= _ALIVE_BYTES:
                    self._has_heard = True
                if count == wanted and len(self._buffer) < _READ_BYTES:
                    self._buffer = memoryview(bytearray(_READ_BYTES))
        except RecordInvalid as error:
            self._lose(f"a record was refused: {error}")
        except RemoteProtocolError as error:
            self._lose(f"the agent broke the protocol: {error}", broken=True)
        except OSError as error:
            self._lose(str(error.strerror or error))
        except Exception as error:
            # A fence: an error of ours costs this link and its session, and never hangs a caller.
            self._lose(f"this controller failed: {error!r}", broken=True)

    def write_now(self) -> None:
        """Write what is to be sent, before its sender waits for the answer, instead of in the writer's turn.

        Never waits: what the socket does not take is left to the writer.
        """
        if self._is_lost or not self._is_writer_idle or self._rest:
            return
        try:
            self._rest = self._next_records()
            if not self._rest:
                return
            with contextlib.suppress(OSError):  # it is full, or broken: the writer will see
                del self._rest[: os.write(self._sock.fileno(), self._rest)]
        except Exception as error:
            self._lose(f"this controller failed: {error!r}", broken=True)
            return
        except BaseException:
            # What was encrypted and not written leaves a gap that the agent cannot read past.
            self._lose("this controller was interrupted")
            raise
        self._on_room()
        if not self._rest and not self._session.has_data_to_send:
            self._work.clear()

    def _write(self) -> None:
        try:
            while not self._is_lost:
                self._is_writer_idle = True
                self._work.wait()
                self._is_writer_idle = False
                self._work.clear()
                self._write_all(self._rest)
                while not self._is_lost:
                    records = self._next_records()
                    if not records:
                        break
                    self._on_room()
                    size = len(records)
                    self._write_all(records)
                    if size >= _WRITE_BYTES:
                        # As in the agent's link: encrypt late, so that a command never waits behind a file.
                        self._wait_writable()
        except OSError as error:
            self._lose(str(error.strerror or error))
        except Exception as error:
            self._lose(f"this controller failed: {error!r}", broken=True)

    def _write_all(self, records: bytearray) -> None:
        """Write what *records* holds, and empty it. As sendall() does, without a dozen calls of gevent's each time."""
        while records:
            try:
                del records[: os.write(self._sock.fileno(), records)]
            except BlockingIOError:
                socket.wait_write(self._sock.fileno())

    def _next_records(self) -> bytearray:
        return self._transport.encrypt_records(self._session.next_records(_WRITE_BYTES))

    def _wait_writable(self) -> None:
        # Asking is one system call, waiting a turn of the event loop; a fast network has nearly always room.
        if not self._room.poll(0):
            socket.wait_write(self._sock.fileno())

    def _keep_alive(self) -> None:
        # Silence is counted in ticks and not by the clock: a prompt of pyinfra's stops this loop for minutes, and
        # what the agent said meanwhile is read only after it.
        tick = min(_KEEPALIVE_SECONDS)
        pings = quiet = 0
        while not self._is_lost:
            self._has_heard = False
            gevent.sleep(tick)
            quiet = 0 if self._has_heard else quiet + 1
            idle, busy = (round(seconds / tick) for seconds in _KEEPALIVE_SECONDS)
            interval = idle if self._session.is_idle else busy
            if quiet > interval * _KEEPALIVE_MISSED:
                self._lose(f"the agent was silent for {quiet * tick:g} s")
            elif quiet and not quiet % interval:
                pings += 1
                self._session.send_ping(pings)
                self._work.set()
