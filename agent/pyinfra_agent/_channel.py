"""One request's streams as its handler sees them: await what comes, await room for what goes.

A channel belongs to a session, not to a link: while no link carries the session its handlers wait
here, and notice nothing else.  When the session itself ends, what is sent is thrown away, so that
a command's output never backs up into it, and what is awaited never comes (`SessionEnded`).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from pyinfra_agent_protocol import (
    DATA_BODY_BYTES,
    DataReceived,
    RequestRefused,
    ResizeReceived,
    SignalReceived,
    StreamEnded,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyinfra_agent_protocol import Session

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

    def __init__(self, number: int, protocol: Session, wake_writer: Callable[[], None]) -> None:
        self.number = number
        #: Set when the controller no longer wants the request, or is gone for good.
        self.cancelled = trio.Event()
        #: What the controller said at the end of its data, once it is there.
        self.ended: StreamEnded | None = None
        self._protocol = protocol
        self._wake_writer = wake_writer
        self._inbox: deque[bytes] = deque()
        self._inbox_bytes = 0
        self._arrival = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()
        self._is_unwanted = False
        self._session_ended = False
        self._on_cancel: Callable[[], None] | None = None
        self._on_forsaken: Callable[[], None] | None = None
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
        return not self._inbox

    async def receive(self, worth_bytes: int = 1) -> list[bytes]:
        """Return data that has arrived, at least one chunk; an empty list after the end.

        With *worth_bytes* it waits until so much is there (or half a window, or all), for a reader to whom
        each call is expensive.  It returns little more than that at once, for a reader that takes a copy.

        Raises:
            SessionEnded: the session is over and the end of the data will never come.
            RequestCancelled: nor will it here, because the controller cancelled the request.
        """
        await trio.lowlevel.checkpoint()
        while self._inbox_bytes < min(worth_bytes, self._protocol.window_size(self.number) // 2):
            if self.ended is not None:
                break
            if self._session_ended:
                raise SessionEnded
            if self.cancelled.is_set():
                raise RequestCancelled
            await self._arrival.park()
        chunks: list[bytes] = []
        count = 0
        while self._inbox and count < max(worth_bytes, DATA_BODY_BYTES):
            chunks.append(self._inbox.popleft())
            count += len(chunks[-1])
        self._inbox_bytes -= count
        self._protocol.consume(self.number, count)
        self._wake_writer()
        return chunks

    async def send(self, data: bytes, stream: int = 0) -> None:
        """Send *data*; waits while the peer has not taken what was sent before.  Thrown away after the session."""
        view = memoryview(data)
        for start in range(0, len(view), DATA_BODY_BYTES):
            while not self._session_ended and not self._protocol.sendable(self.number):
                await self._room.park()
            if self._session_ended:
                return
            self._protocol.send_data(self.number, view[start : start + DATA_BODY_BYTES], stream)
            self._wake_writer()

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

    # --- for the session ---

    def put_data(self, event: DataReceived) -> None:
        """Take data that arrived."""
        self._inbox.append(event.data)
        self._inbox_bytes += len(event.data)
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
