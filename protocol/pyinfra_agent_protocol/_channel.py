"""One channel: a request and its streams, as two half-open directions (SPEC.md section 8).

    up    connector to agent:  OPEN, then DATA* END, and SIGNAL, RESIZE or CANCEL at any time
    down  agent to connector:  DATA*, then one RESULT or REFUSED, the last frame of the channel

The last frame closes both directions.  Frames that were on their way up when it was sent arrive late:
the table lets them in and the session drops them.  The table does not know which side reads it, so
we cannot be laxer with ourselves than with the peer.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import TYPE_CHECKING, Final

from ._errors import FrameInvalid
from ._frames import FrameType
from ._saved import SavedChannel, SavedPart
from ._window import Budget, ReceiveWindow, SendWindow

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["DOWN", "UP", "Channel", "Half", "step"]


class Half(enum.Enum):
    """What is the case in one direction of a channel."""

    # Members are what they are and nothing equals them. Enum's own is a function in Python, called for each frame.
    __hash__ = object.__hash__

    FLOWING = "flowing"
    ENDED = "ended"
    CLOSED = "closed"


UP: Final[Mapping[tuple[Half, FrameType], Half]] = {
    (Half.FLOWING, FrameType.DATA): Half.FLOWING,
    (Half.FLOWING, FrameType.END): Half.ENDED,
    (Half.FLOWING, FrameType.SIGNAL): Half.FLOWING,
    (Half.FLOWING, FrameType.RESIZE): Half.FLOWING,
    (Half.FLOWING, FrameType.CANCEL): Half.FLOWING,
    (Half.ENDED, FrameType.SIGNAL): Half.ENDED,
    (Half.ENDED, FrameType.RESIZE): Half.ENDED,
    (Half.ENDED, FrameType.CANCEL): Half.ENDED,
    # Late frames: on their way when the last frame was sent down.
    (Half.CLOSED, FrameType.DATA): Half.CLOSED,
    (Half.CLOSED, FrameType.END): Half.CLOSED,
    (Half.CLOSED, FrameType.SIGNAL): Half.CLOSED,
    (Half.CLOSED, FrameType.RESIZE): Half.CLOSED,
    (Half.CLOSED, FrameType.CANCEL): Half.CLOSED,
}

DOWN: Final[Mapping[tuple[Half, FrameType], Half]] = {
    (Half.FLOWING, FrameType.DATA): Half.FLOWING,
    (Half.FLOWING, FrameType.RESULT): Half.CLOSED,
    (Half.FLOWING, FrameType.REFUSED): Half.CLOSED,
}


def step(table: Mapping[tuple[Half, FrameType], Half], half: Half, kind: FrameType) -> Half:
    """Return where a frame of *kind* takes *half*.

    Raises:
        FrameInvalid: *table* does not list the pair.
    """
    try:
        return table[half, kind]
    except KeyError:
        raise FrameInvalid(f"{kind.name} on a channel that is {half.value}") from None


class Channel:
    """One request's state in a session; made by `Session` and used by nobody else."""

    __slots__ = ("down", "id", "queue", "queued_bytes", "receive_window", "send_window", "up")

    def __init__(self, number: int, budget: Budget) -> None:
        self.id = number
        self.up = Half.FLOWING
        self.down = Half.FLOWING
        self.send_window = SendWindow()
        self.receive_window = ReceiveWindow(budget)
        #: Frames in the order in which they go out: type, stream, body.
        self.queue: deque[tuple[FrameType, int, bytes | memoryview]] = deque()
        self.queued_bytes = 0

    def push(self, kind: FrameType, stream: int, body: bytes | memoryview) -> None:
        """Put a frame behind those that wait."""
        self.queue.append((kind, stream, body))
        self.queued_bytes += len(body)

    def export(self) -> SavedChannel:
        """Return the channel's state."""
        send, receive = self.send_window, self.receive_window
        return SavedChannel(
            number=self.id,
            up=self.up.value,
            down=self.down.value,
            send_limit=send.limit,
            sent=send.sent,
            limit=receive.limit,
            received=receive.received,
            consumed=receive.consumed,
            size=receive.size,
            stated=receive.stated,
            peer_waits=receive.peer_waits,
            peer_reached=receive.peer_reached,
            queue=tuple(SavedPart(int(kind), stream, bytes(body)) for kind, stream, body in self.queue),
        )

    @classmethod
    def restore(cls, saved: SavedChannel, budget: Budget) -> Channel:
        """Return the channel whose state was saved."""
        channel = cls(saved.number, budget)
        channel.up, channel.down = Half(saved.up), Half(saved.down)
        channel.send_window.limit, channel.send_window.sent = saved.send_limit, saved.sent
        channel.receive_window.restore(saved)
        for part in saved.queue:
            channel.push(FrameType(part.kind), part.stream, part.body)
        return channel

    def close(self) -> None:
        """Take note of the last frame: nothing goes up any more, and no window is needed."""
        self.up = self.down = Half.CLOSED
        self.receive_window.close()
