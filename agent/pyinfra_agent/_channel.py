"""One request's streams as its handler sees them: await what comes, await room for what goes.

A channel belongs to a session, not to a link: while no link carries the session its handlers wait
here, and notice nothing else.  When the session itself ends, what is sent is thrown away, so that
a command's output never backs up into it, and what is awaited never comes (`SessionEnded`).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import msgpack
import trio

from pyinfra_agent_protocol import (
    DATA_BODY_BYTES,
    DataReceived,
    RequestRefused,
    Resize,
    ResizeReceived,
    Signal,
    SignalReceived,
    StreamEnded,
)

from ._saved import SavedRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyinfra_agent_protocol import Request, Session

    from ._saved import Descriptors, SavedRun

__all__ = ["RequestCancelled", "RequestChannel", "SessionEnded"]

#: Stands for a size where signals stand for themselves: there is no signal 0.
_SIZE: Final = 0


class SessionEnded(RequestRefused):
    """Nobody is there any more to whom the request could be answered."""

    def __init__(self) -> None:
        super().__init__("session-ended", "the session ended before the request did")


class RequestCancelled(RequestRefused):
    """The controller no longer wants the request, and its data will not come."""

    def __init__(self) -> None:
        super().__init__("cancelled", "the request was cancelled before all of its data was there")


class RequestChannel:
    """The two streams and the controls of one request; made by `AgentSession` for a handler."""

    def __init__(
        self, number: int, protocol: Session, wake_writer: Callable[[], None], push: Callable[[], None]
    ) -> None:
        self.number = number
        #: Set when the controller no longer wants the request, or is gone for good.
        self.cancelled = trio.Event()
        #: What the controller said at the end of its data, once it is there.
        self.ended: StreamEnded | None = None
        #: Bytes of data that came, and that were given to be sent.
        self.received_bytes = 0
        self.sent_bytes = 0
        self._protocol = protocol
        self._wake_writer = wake_writer
        #: Writes what was sent, as far as that needs no waiting.
        self.push = push
        self._inbox: deque[bytes | bytearray] = deque()
        self._inbox_bytes = 0
        #: Below this the reader that waits need not be woken.
        self._wanted_bytes = 1
        self._arrival = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()
        self._is_unwanted = False
        self._session_ended = False
        self._on_cancel: Callable[[], None] | None = None
        self._on_forsaken: Callable[[], None] | None = None
        #: Set before the handler is cancelled: another agent goes on with what it did, and it must end nothing.
        self.is_handed_over = False
        self._on_export: Callable[[Descriptors], SavedRun] | None = None
        self._on_release: Callable[[], None] | None = None
        #: What `put_back` was given.
        self._returned = b""
        #: What `send` was about to send when it was cancelled.
        self._unsent: tuple[int, bytes | memoryview] | None = None
        self._listener: Callable[[SignalReceived | ResizeReceived], None] | None = None
        # What came before the command: each signal once, and the last size.
        self._controls: dict[int, SignalReceived | ResizeReceived] = {}

    # --- for the handler ---

    @property
    def session_ended(self) -> bool:
        """True when the controller did not cancel: it is gone."""
        return self._session_ended and not self._is_unwanted

    @property
    def is_drained(self) -> bool:
        """True when everything that arrived was received; with `ended`, everything that ever will."""
        return not self._inbox and not self._returned

    async def receive(self, worth_bytes: int = 1) -> list[bytes | bytearray]:
        """Return data that has arrived, at least one chunk; an empty list after the end.

        With *worth_bytes* it waits until so much is there (or half a window, or all), for a reader to whom
        each call is expensive.  It returns little more than that at once, for a reader that takes a copy.

        Raises:
            SessionEnded: the session is over and the end of the data will never come.
            RequestCancelled: nor will it here, because the controller cancelled the request.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._returned:
            returned, self._returned = self._returned, b""
            return [returned]
        while self._inbox_bytes < (wanted := min(worth_bytes, self._protocol.window_size(self.number) // 2)):
            if self.ended is not None:
                break
            if self._session_ended:
                raise SessionEnded
            if self.cancelled.is_set():
                raise RequestCancelled
            self._wanted_bytes = wanted
            await self._arrival.park()
        chunks: list[bytes | bytearray] = []
        count = 0
        while self._inbox and count < max(worth_bytes, DATA_BODY_BYTES):
            chunks.append(self._inbox.popleft())
            count += len(chunks[-1])
        self._inbox_bytes -= count
        self._protocol.consume(self.number, count)
        if self._protocol.has_data_to_send:
            self._wake_writer()
        return chunks

    def put_back(self, data: bytes) -> None:
        """Let the next `receive` return *data* again: its handler stops, and another one will begin anew."""
        self._returned = data + self._returned

    async def send(self, data: bytes | memoryview, stream: int = 0) -> None:
        """Send *data*; waits while the peer has not taken what was sent before.  Thrown away after the session.

        If it is cancelled, `export` knows what was not sent.
        """
        view = memoryview(data)
        while view and not self._session_ended:
            if room := self._protocol.sendable(self.number):
                body, view = view[:room], view[room:]
                self._protocol.send_data(self.number, body, stream)
                self.sent_bytes += len(body)
                self._wake_writer()
            else:
                self._unsent = stream, view
                await self._room.park()
                self._unsent = None

    def listen(self, listener: Callable[[SignalReceived | ResizeReceived], None]) -> None:
        """Call *listener* with each signal and new size, those that came before it included."""
        self._listener = listener
        controls, self._controls = self._controls, {}
        for event in controls.values():
            listener(event)

    def when_cancelled(self, callback: Callable[[], None]) -> None:
        """Call *callback* when the controller cancels the request or its session ends; at once if that was before."""
        self._on_cancel = callback
        if self.cancelled.is_set():
            callback()

    def when_forsaken(self, callback: Callable[[], None]) -> None:
        """Call *callback* when the controller has vanished and is not waited for any more."""
        self._on_forsaken = callback

    def when_released(self, callback: Callable[[], None]) -> None:
        """Call *callback* when the request was answered, which it need not wait for, or will never be."""
        self._on_release = callback

    def release(self) -> None:
        """Let go of what the request held, unless another agent goes on with it."""
        callback, self._on_release = self._on_release, None
        if callback is not None and not self.is_handed_over:
            callback()

    async def send_unsent(self) -> None:
        """Send what the agent before us had read and could not send."""
        if self._unsent is not None:
            (stream, data), self._unsent = self._unsent, None
            await self.send(data, stream)

    # --- handing over ---

    def when_exported(self, callback: Callable[[Descriptors], SavedRun]) -> None:
        """Call *callback* for what there is to know of the request's command when another agent is to go on with it."""
        self._on_export = callback

    def export(self, request: Request, age_seconds: float, descriptors: Descriptors) -> SavedRequest:
        """Return a request that was not answered: its streams, and its command. Its handler was cancelled."""
        signals = [event.signal.signal for event in self._controls.values() if isinstance(event, SignalReceived)]
        sizes = [event.size for event in self._controls.values() if isinstance(event, ResizeReceived)]
        stream, unsent = self._unsent if self._unsent is not None else (0, b"")
        return SavedRequest(
            number=self.number,
            name=request.NAME,
            fields=msgpack.packb(request.to_fields()),
            age_seconds=age_seconds,
            run=self._on_export(descriptors) if self._on_export is not None else None,
            returned=self._returned,
            inbox=tuple(map(bytes, self._inbox)),
            has_ended=self.ended is not None,
            end_size=self.ended.size if self.ended is not None else None,
            end_digest=self.ended.digest if self.ended is not None else None,
            is_cancelled=self._is_unwanted,
            signals=tuple(signals),
            size=(sizes[-1].rows, sizes[-1].columns) if sizes else None,
            unsent=bytes(unsent),
            unsent_stream=stream,
        )

    def restore(self, saved: SavedRequest) -> None:
        """Become, from new, as the channel was when it was exported."""
        self._returned = saved.returned
        for data in saved.inbox:
            self.put_data(DataReceived(self.number, 0, data))
        if saved.has_ended:
            self.put_end(StreamEnded(self.number, saved.end_size, saved.end_digest))
        for number in saved.signals:
            self.put_control(SignalReceived(self.number, Signal(number)))
        if saved.size is not None:
            self.put_control(ResizeReceived(self.number, Resize(*saved.size)))
        if saved.unsent:
            self._unsent = saved.unsent_stream, saved.unsent
        if saved.is_cancelled:
            self.cancel()

    # --- for the session ---

    def put_data(self, event: DataReceived) -> None:
        """Take data that arrived."""
        self._inbox.append(event.data)
        self._inbox_bytes += len(event.data)
        self.received_bytes += len(event.data)
        if self._inbox_bytes >= self._wanted_bytes:
            self._arrival.unpark_all()

    def put_end(self, event: StreamEnded) -> None:
        """Take the end of the data."""
        self.ended = event
        self._arrival.unpark_all()

    def put_control(self, event: SignalReceived | ResizeReceived) -> None:
        """Take a signal or a size."""
        if self._listener is not None:
            self._listener(event)
        else:
            self._controls[event.signal.signal if isinstance(event, SignalReceived) else _SIZE] = event

    def cancel(self) -> None:
        """Note that the controller no longer wants the request."""
        self._is_unwanted = True
        self._note_cancelled()
        self._arrival.unpark_all()

    def forsake(self) -> None:
        """Note that the controller has vanished, and that what runs for it should not go on without it."""
        if self._on_forsaken is not None:
            self._on_forsaken()

    def note_room(self) -> None:
        """Let a handler that waits for room look again."""
        if self._protocol.sendable(self.number):
            self._room.unpark_all()

    def end_session(self) -> None:
        """Let everybody who waits here know that it is in vain."""
        self._session_ended = True
        self._note_cancelled()
        self._arrival.unpark_all()
        self._room.unpark_all()

    def _note_cancelled(self) -> None:
        if not self.cancelled.is_set():
            self.cancelled.set()
            if self._on_cancel is not None:
                self._on_cancel()
