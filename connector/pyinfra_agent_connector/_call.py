"""One request in progress, as the greenlet that made it sees it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from gevent.event import Event

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from pyinfra_agent_protocol import DataReceived, Result

    from ._connection import Connection

__all__ = ["Call"]


class Call:
    """A request whose answer is awaited; made by `Connection.call`, used in a `with` block.

    Leaving the block before the answer, by a `gevent.Timeout` for example, cancels the request.
    """

    def __init__(self, connection: Connection, channel: int, what: str) -> None:
        self.channel = channel
        #: The request in a person's words, for errors.
        self.what = what
        #: The caller would rather have an error than wait until a lost connection is resumed.
        self.expects_loss = False
        self._connection = connection
        self._inbox: deque[DataReceived] = deque()
        self._changed = Event()
        self._room = Event()
        self._result: Result | None = None
        self._error: Exception | None = None
        self._is_abandoned = False

    def __enter__(self) -> Call:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self.is_over:
            self.cancel()
            self.abandon()

    @property
    def is_over(self) -> bool:
        """True once the answer, or an error, is there."""
        return self._result is not None or self._error is not None

    # --- for the caller ---

    def receive(self) -> list[DataReceived]:
        """Wait for data; return all that has arrived, or an empty list when the answer is there."""
        while not self._inbox:
            if self.is_over:
                return []
            self._changed.clear()
            self._connection.flush()
            self._changed.wait()
        events = list(self._inbox)
        self._inbox.clear()
        self._consume(events)
        return events

    def result(self) -> Result:
        """Wait for the answer, throwing data away; return it.

        Raises:
            Refused: the agent refused the request or failed at it.
            ConnectionLost: the session ended before the answer came.
        """
        while self.receive():
            pass
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    def send(self, data: bytes) -> bool:
        """Send *data*, waiting while the agent does not take more; False once the answer is there and it is in vain."""
        view = memoryview(data)
        while view:
            if self.is_over:
                return False
            if room := self._connection.sendable(self.channel):
                self._connection.send_data(self.channel, view[:room])
                view = view[room:]
            else:
                self._room.clear()
                self._room.wait()
        return True

    def end(self, *, size: int | None = None, digest: bytes | None = None) -> None:
        """Say that no more data follows."""
        if not self.is_over:
            self._connection.send_end(self.channel, size, digest)

    def cancel(self) -> None:
        """Ask the agent to end the request; its answer still comes."""
        if not self.is_over:
            self._connection.send_cancel(self.channel)

    def signal(self, number: int) -> None:
        """Deliver a signal to the command."""
        if not self.is_over:
            self._connection.send_signal(self.channel, number)

    def resize(self, rows: int, columns: int) -> None:
        """Tell the command's terminal its new size."""
        if not self.is_over:
            self._connection.send_resize(self.channel, rows, columns)

    def abandon(self) -> None:
        """Take no more interest: what still arrives is thrown away."""
        self._is_abandoned = True
        self._consume(self._inbox)
        self._inbox.clear()

    # --- for the connection; none of these waits ---

    def put_data(self, event: DataReceived) -> None:
        """Take data that arrived."""
        if self._is_abandoned:
            self._consume((event,))
        else:
            self._inbox.append(event)
            self._changed.set()

    def put_result(self, result: Result) -> None:
        """Take the answer."""
        self._result = result
        self._wake()

    def put_error(self, error: Exception) -> None:
        """Take what stands in for an answer."""
        self._error = error
        self._wake()

    def note_room(self) -> None:
        """Let a caller that waits for room look again."""
        self._room.set()

    def _consume(self, events: Iterable[DataReceived]) -> None:
        # After the answer there is no window left to open; after an error the connection may have another session, in
        # which this channel's number is somebody else's.
        if not self.is_over:
            self._connection.consume(self.channel, sum(len(event.data) for event in events))

    def _wake(self) -> None:
        self._changed.set()
        self._room.set()
