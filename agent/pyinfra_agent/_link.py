"""One link: the tasks that carry a session over one connection, and how it ends.

Three tasks: the reader never waits for anybody (acknowledgements arrive there), the writer encrypts
only what the socket will take, and the keeper asks for a sign of life.  Whichever ends first ends the
others; the session then waits for its next link.
"""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING, Final

import trio

from pyinfra_agent_protocol import (
    QUEUE_MAX_BYTES,
    LocalProtocolError,
    RecordInvalid,
    RemoteProtocolError,
    encode_goodbye,
    encode_welcome,
)

from ._log import log
from ._metrics import Counters

if TYPE_CHECKING:
    from pyinfra_agent_protocol import Transport, Welcome

    from ._session import AgentSession
    from ._settings import Settings

__all__ = ["Link"]

_READ_BYTES: Final = 256 * 1024
#: How many of these a link that has always more to read is given before others run: about a millisecond.
_READS_A_TURN: Final = 4
# Of a buffer that is used again and again the pages are there, and their content is in the processor's cache.
_view: Final = memoryview(bytearray(_READ_BYTES))
#: Records are joined up to here before they are written: fewer system calls, and latency stays small.
_WRITE_BYTES: Final = 128 * 1024
_GOODBYE_SECONDS: Final = 1.0
#: Part of a record is a sign of life too, as on a slow link, but no less than this: into a record whose length was
#: corrupted PONGs trickle for hours.
_ALIVE_BYTES: Final = 512


class Link:
    """The link that carries *session* over *stream* until `run` returns.

    It is the session's link from the moment it is made, which must be the moment the session was attached: a newer
    one finds it and waits for its end.
    """

    def __init__(
        self,
        stream: trio.abc.HalfCloseableStream,
        transport: Transport,
        session: AgentSession,
        welcome: Welcome,
        settings: Settings,
        counters: Counters | None = None,
    ) -> None:
        self.stream = stream
        self.session = session
        self._transport = transport
        self._welcome = welcome
        self._settings = settings
        self._counters = counters or Counters()
        self._scope = trio.CancelScope()
        self._finished = trio.Event()
        self._written = trio.lowlevel.ParkingLot()
        self._heard_at = trio.current_time()
        self._reason = "closed"
        self._said_last_word = False
        self._is_expelled = False
        self._is_writer_idle = False
        #: The last read was full: there may be more to read at once.
        self._has_more = False
        self._reads = 0
        self._room = select.poll()
        if isinstance(stream, trio.SocketStream):
            self._room.register(stream.socket.fileno(), select.POLLOUT)
        #: Encrypted, and not taken by the socket.
        self._rest = bytearray()
        #: Set when the connection is about to be closed.
        self.gone = trio.Event()
        session.link = self

    async def run(self) -> None:
        """Welcome the controller and carry its session until the link is lost or replaced; then it is detached."""
        try:
            with self._scope:
                if await self._send_welcome():
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._write)
                        nursery.start_soon(self._keep_alive)
                        await self._read()
        finally:
            self.session.protocol.detach()
            self.session.link = None
            self._finished.set()
            self._written.unpark_all()
            log("link-lost", controller=self.session.controller, session=self.session, reason=self._reason)

    async def replace(self) -> None:
        """End the link in favour of a newer one; returns when its reader has stopped."""
        self._end("replaced")
        await self._finished.wait()

    async def say_goodbye(self, code: str, text: str) -> None:
        """Tell the controller why the link ends, as far as it still listens, and end it."""
        self.session.protocol.send_goodbye(code, text)
        self.session.wake_writer()
        with trio.move_on_after(_GOODBYE_SECONDS):
            while (self._rest or self.session.protocol.has_data_to_send) and not self._finished.is_set():
                await self._written.park()
            self._said_last_word = True
        self._end(code)
        await self.gone.wait()

    async def expel(self, code: str, text: str) -> None:
        """Say why to a controller whose session is over, and end the link; nothing more of it is looked at."""
        self._is_expelled = True
        await self._send_last(code, text)
        self._end(code)

    async def let_go(self) -> None:
        """See to it that a last word arrives: a socket closed over unread bytes is reset, which destroys it."""
        if not self._said_last_word:
            return
        with trio.move_on_after(_GOODBYE_SECONDS):
            try:
                await self.stream.send_eof()
                while await self.stream.receive_some(_READ_BYTES):
                    pass
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return

    def _end(self, reason: str) -> None:
        if not self._scope.cancel_called:
            self._reason = reason
            self._scope.cancel()

    async def _send_welcome(self) -> bool:
        with trio.move_on_after(self._settings.handshake_seconds):
            try:
                await self.stream.send_all(self._transport.encrypt(encode_welcome(self._welcome)))
            except trio.BrokenResourceError as error:
                self._reason = f"connection broken: {error.__cause__ or error}"
                return False
            return True
        self._reason = "the welcome was not taken"
        return False

    async def _read(self) -> None:
        data: bytes | memoryview = b""  # what came along with handshake message 3 is already in the transport
        while True:
            try:
                records = self._transport.receive_data(data) if not self._is_expelled else []
                if records or len(data) >= _ALIVE_BYTES:
                    self._heard_at = trio.current_time()
                for plaintext in records:
                    self.session.receive_record(plaintext)
            except RecordInvalid as error:
                # Anybody in the network can inject bytes: they cost the link and never the session.
                self._end(f"record refused: {error}")
            except (RemoteProtocolError, LocalProtocolError) as error:
                await self._send_last(getattr(error, "code", "protocol"), str(error))
                self._end(f"protocol broken: {error}")
            if self.session.protocol.has_data_to_send:
                self.session.wake_writer()
            try:
                data = await self._receive_some()
                self._counters.bytes_received += len(data)
            except trio.BrokenResourceError as error:
                self._end(f"connection broken: {error.__cause__ or error}")
                return
            if not data:
                self._end("closed by the controller")
                return

    async def _receive_some(self) -> bytes | memoryview:
        """Receive from a socket as its stream would, past layers that take as long as receiving does.

        What is returned must be done with before anybody else receives: all links read into one buffer.
        """
        stream = self.stream
        if not isinstance(stream, trio.SocketStream):
            return bytes(await stream.receive_some(_READ_BYTES))
        wanted = _view[: self._transport.read_size(_READ_BYTES)]
        self._reads += 1
        if not self._has_more:
            await trio.lowlevel.wait_readable(stream.socket)
        elif self._reads % _READS_A_TURN:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await trio.lowlevel.checkpoint()
        while True:
            try:
                count = os.readv(stream.socket.fileno(), (wanted,))
            except BlockingIOError:
                await trio.lowlevel.wait_readable(stream.socket)
            except OSError as error:
                raise trio.BrokenResourceError("the connection is broken") from error
            else:
                self._has_more = count == len(wanted)
                return _view[:count]

    def write_now(self) -> bool:
        """Write what is to be sent, at once instead of in the writer's turn; tell whether nothing is left to it."""
        stream = self.stream
        if not isinstance(stream, trio.SocketStream) or not self._is_writer_idle:
            return False
        if self._rest or self._is_expelled or self._scope.cancel_called:
            return False
        left = QUEUE_MAX_BYTES  # what one sender has queued: with all that others have, nobody else would have a turn
        while left > 0 and (records := self._next_records()):
            self.session.note_room()
            try:
                written = os.write(stream.socket.fileno(), records)
            except OSError:  # full, or broken: the writer will see
                written = 0
            size = len(records)
            self._counters.bytes_sent += size
            left -= size
            del records[:written]
            self._rest = records
            if records or (size >= _WRITE_BYTES and not self._room.poll(0)):  # see _wait_writable
                break
        return not self._rest and not self.session.protocol.has_data_to_send

    async def _write(self) -> None:
        session = self.session
        try:
            while True:
                self._is_writer_idle = True
                while not (self._rest or session.protocol.has_data_to_send or session.is_closing):
                    await session.wait_work()
                self._is_writer_idle = False
                if self._rest:
                    await self.stream.send_all(self._rest)
                    self._rest = bytearray()
                while True:
                    records = self._next_records()
                    if not records:
                        self._written.unpark_all()
                        break
                    session.note_room()
                    await self.stream.send_all(records)
                    self._counters.bytes_sent += len(records)
                    if len(records) >= _WRITE_BYTES:
                        await self._wait_writable()
                if session.is_closing:
                    self._said_last_word = True
                    self._end("closed")
                    await trio.sleep_forever()
        except (trio.BrokenResourceError, LocalProtocolError) as error:
            self._end(f"connection broken: {error.__cause__ or error}")

    def _next_records(self) -> bytearray:
        return self._transport.encrypt_records(self.session.protocol.next_records(_WRITE_BYTES))

    async def _wait_writable(self) -> None:
        # TCP_NOTSENT_LOWAT makes this wait for a nearly empty queue, so that a command's answer never
        # stands behind megabytes of a file that were encrypted too early.
        # Asking is one system call, waiting a turn of the event loop; a fast network has nearly always room.
        if isinstance(self.stream, trio.SocketStream) and not self._room.poll(0):
            await trio.lowlevel.wait_writable(self.stream.socket)

    async def _keep_alive(self) -> None:
        pings = 0
        while True:
            idle, busy = self._settings.keepalive_seconds
            interval = idle if self.session.is_idle else busy
            silence = trio.current_time() - self._heard_at
            if silence >= interval * self._settings.keepalive_missed:
                self._end(f"silent for {silence:.0f} s")
                return
            if silence >= interval:
                pings += 1
                self.session.protocol.send_ping(pings)
                self.session.wake_writer()
            await trio.sleep(min(idle, busy))

    async def _send_last(self, code: str, text: str) -> None:
        """Say why, on a link whose session is over: the session can no longer."""
        with trio.move_on_after(_GOODBYE_SECONDS):
            try:
                await self.stream.send_all(self._transport.encrypt(encode_goodbye(code, text)))
                self._said_last_word = True
            except (trio.BrokenResourceError, trio.BusyResourceError):
                return
