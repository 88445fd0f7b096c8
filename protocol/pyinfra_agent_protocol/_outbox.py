"""What a session sends: order, numbering, retention and replay (SPEC.md section 7).

Numbered frames get their number by entering `_retained` in the order in which they are first
written.  They are kept, by reference and as plaintext, until the peer acknowledges them; a new link
gets those that are left again, in the same order, before anything new.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from ._constants import (
    DATA_BODY_BYTES,
    DATA_BODY_SHARED_BYTES,
    FRAME_HEADER_BYTES,
    RECORD_PLAINTEXT_MAX_BYTES,
    RETAINED_MAX_BYTES,
)
from ._errors import FrameInvalid, ResumeInvalid
from ._frames import NUMBERED, FrameType, encode_counter, encode_header, split_frames
from ._saved import SavedFrame

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._channel import Channel

__all__ = ["Outbox"]

#: Below this rest of a record a DATA frame waits for the next one instead of being cut in crumbs.
_CRUMB_BYTES: Final = 4096


class _Kept(NamedTuple):
    """A numbered frame that the peer has not acknowledged."""

    kind: FrameType
    channel: int
    header: bytes
    body: bytes | memoryview


def _restored(saved: SavedFrame) -> _Kept:
    frames = split_frames(saved.header + saved.body)
    if len(frames) != 1 or frames[0].kind not in NUMBERED:
        raise FrameInvalid("a saved frame that is not one numbered frame")
    return _Kept(frames[0].kind, frames[0].channel, saved.header, saved.body)


class Outbox:
    """Queues of one session's outgoing frames, and the next record made from them."""

    def __init__(self, retained_max_bytes: int = RETAINED_MAX_BYTES) -> None:
        self.acknowledged = 0
        self.retained_bytes = 0
        self._retained_max_bytes = retained_max_bytes
        self._retained: deque[_Kept] = deque()
        self._replay: deque[_Kept] = deque()
        self._urgent: deque[_Kept] = deque()
        self._unopened: set[int] = set()
        self._ready: dict[int, Channel] = {}
        self._ack: int | None = None
        self._credits: dict[int, int] = {}
        self._blocked: dict[int, int] = {}
        # One of a kind: of several PINGs only the last is answered, so a flood costs nothing.
        self._notices: dict[FrameType, bytes] = {}

    @property
    def sent(self) -> int:
        """Numbered frames that were ever written to a link."""
        return self.acknowledged + len(self._retained)

    @property
    def is_empty(self) -> bool:
        """True when there is nothing that could be written now."""
        return not (
            self._ack is not None
            or self._notices
            or self._credits
            or self._blocked
            or self._replay
            or self._urgent
            or (self._ready and not self.is_full)
        )

    @property
    def is_full(self) -> bool:
        """True when the peer has so much to acknowledge that nothing but control frames is sent."""
        return self.retained_bytes >= self._retained_max_bytes

    # --- what is to be sent ---

    def say_ack(self, received: int) -> None:
        """Acknowledge *received* numbered frames in the next record."""
        self._ack = received

    def say_credit(self, channel: int, limit: int) -> None:
        """Grant *channel* bytes up to *limit*."""
        self._credits[channel] = limit

    def forget_credit(self, channel: int) -> None:
        """Grant nothing that was not written yet: no more comes on *channel*."""
        self._credits.pop(channel, None)

    def say(self, kind: FrameType, body: bytes) -> None:
        """Send an unnumbered frame about the link; a later one of its kind replaces it."""
        self._notices[kind] = body

    def push_urgent(self, kind: FrameType, channel: int, body: bytes) -> None:
        """Send a numbered frame ahead of all DATA, in the order of these calls."""
        if kind is FrameType.OPEN:
            self._unopened.add(channel)
        self._urgent.append(_Kept(kind, channel, encode_header(kind, 0, channel, len(body)), body))

    def mark_ready(self, channel: Channel) -> None:
        """Note that *channel* has frames in its queue that may be sent, unless only a CREDIT can move them."""
        if channel.queue[0][0] is FrameType.DATA and channel.send_window.is_blocked:
            return
        self._ready.setdefault(channel.id, channel)

    def is_waiting(self, channel: int) -> bool:
        """True while the frame that opens *channel* was not written to any link."""
        return channel in self._unopened

    def forget(self, channel: int) -> None:
        """Drop what waits for a channel that is closed and was not yet numbered."""
        self._ready.pop(channel, None)
        self._credits.pop(channel, None)
        self._blocked.pop(channel, None)
        if self._urgent:
            self._urgent = deque(kept for kept in self._urgent if kept.channel != channel)

    # --- handing over ---

    def export(self) -> tuple[tuple[SavedFrame, ...], tuple[SavedFrame, ...]]:
        """Return the frames that are retained, and those that wait ahead of all DATA."""
        retained, urgent = (
            tuple(SavedFrame(kept.header, bytes(kept.body)) for kept in queue)
            for queue in (self._retained, self._urgent)
        )
        return retained, urgent

    def restore(self, acknowledged: int, retained: Iterable[SavedFrame], urgent: Iterable[SavedFrame]) -> None:
        """Become, from empty, as an outbox was when it was exported; `start_link` follows.

        Raises:
            FrameInvalid: a header does not belong to its body.
        """
        self.acknowledged = acknowledged
        for saved in retained:
            self._keep(_restored(saved))
        for saved in urgent:
            kept = _restored(saved)
            self._urgent.append(kept)
            if kept.kind is FrameType.OPEN:
                self._unopened.add(kept.channel)

    # --- acknowledgement and resumption ---

    def acknowledge(self, count: int) -> list[int]:
        """Forget frames up to number *count*; return channels whose last frame was among them.

        Raises:
            ResumeInvalid: *count* is below what was acknowledged before or above what was sent.
        """
        if not self.acknowledged <= count <= self.sent:
            raise ResumeInvalid(f"{count} frames acknowledged, {self.acknowledged} to {self.sent} were possible")
        closed: list[int] = []
        for _ in range(count - self.acknowledged):
            kind, channel, _, body = self._retained.popleft()
            self.retained_bytes -= len(body) + FRAME_HEADER_BYTES
            if kind is FrameType.RESULT or kind is FrameType.REFUSED:
                closed.append(channel)
        self.acknowledged = count
        return closed

    def start_link(self) -> None:
        """Begin a new link: all that is retained goes first; what was only about the old link is dropped."""
        self._replay = deque(self._retained)
        self._notices.clear()
        self._credits.clear()
        self._blocked.clear()
        self._ack = None

    # --- writing ---

    def next_record(self) -> tuple[list[bytes | memoryview], int]:
        """Return the plaintext of the next record in parts, and its size; no parts if there is nothing to send."""
        parts: list[bytes | memoryview] = []
        room = self._write_unnumbered(parts, RECORD_PLAINTEXT_MAX_BYTES)
        if self._replay:
            room = self._write_kept(parts, room, self._replay, first_time=False)
        if not self._replay:
            if self._urgent:
                room = self._write_kept(parts, room, self._urgent, first_time=True)
            room = self._write_channels(parts, room)
            room = self._write_unnumbered(parts, room)
        return parts, RECORD_PLAINTEXT_MAX_BYTES - room

    def _write_unnumbered(self, parts: list[bytes | memoryview], room: int) -> int:
        if self._ack is None and not (self._credits or self._blocked or self._notices):
            return room
        if self._ack is not None and room >= 2 * FRAME_HEADER_BYTES:
            parts += (encode_header(FrameType.ACK, 0, 0, 8), encode_counter(self._ack))
            room -= 2 * FRAME_HEADER_BYTES
            self._ack = None
        for kind, values in ((FrameType.CREDIT, self._credits), (FrameType.BLOCKED, self._blocked)):
            while values and room >= 2 * FRAME_HEADER_BYTES:
                channel, limit = values.popitem()
                parts += (encode_header(kind, 0, channel, 8), encode_counter(limit))
                room -= 2 * FRAME_HEADER_BYTES
        for kind, body in tuple(self._notices.items()):
            if kind is FrameType.GOODBYE and (self._replay or self._urgent or (self._ready and not self.is_full)):
                continue  # it is the last frame of a link
            if len(body) + FRAME_HEADER_BYTES > room:
                break
            del self._notices[kind]
            parts += (encode_header(kind, 0, 0, len(body)), body)
            room -= len(body) + FRAME_HEADER_BYTES
        return room

    def _write_kept(self, parts: list[bytes | memoryview], room: int, queue: deque[_Kept], *, first_time: bool) -> int:
        while queue and len(queue[0].body) + FRAME_HEADER_BYTES <= room:
            kept = queue.popleft()
            if first_time:
                self._keep(kept)
                self._unopened.discard(kept.channel)
            parts += (kept.header, kept.body)
            room -= len(kept.body) + FRAME_HEADER_BYTES
        return room

    def _keep(self, kept: _Kept) -> None:
        self._retained.append(kept)
        self.retained_bytes += len(kept.body) + FRAME_HEADER_BYTES

    def _write_channels(self, parts: list[bytes | memoryview], room: int) -> int:
        """Take one frame from each ready channel in turn until the record is full."""
        while self._ready and room > FRAME_HEADER_BYTES and not self._urgent and not self.is_full:
            number, channel = next(iter(self._ready.items()))
            kind, stream, body = channel.queue[0]
            size = len(body)
            if kind is FrameType.DATA:
                most = room - FRAME_HEADER_BYTES
                if most < size and most < _CRUMB_BYTES:
                    break
                size = channel.send_window.use(
                    min(size, most, DATA_BODY_BYTES if len(self._ready) == 1 else DATA_BODY_SHARED_BYTES)
                )
                if not size:
                    del self._ready[number]
                    if channel.send_window.note_blocked():
                        self._blocked[number] = channel.send_window.limit
                    continue
            elif size + FRAME_HEADER_BYTES > room:
                break
            # To the end of the line, or out of it.
            del self._ready[number]
            if size < len(body):
                rest = memoryview(body)
                body = rest[:size]
                channel.queue[0] = (kind, stream, rest[size:])
            else:
                channel.queue.popleft()
            channel.queued_bytes -= size
            if channel.queue:
                self._ready[number] = channel
            kept = _Kept(kind, number, encode_header(kind, stream, number, size), body)
            self._keep(kept)
            parts += (kept.header, kept.body)
            room -= size + FRAME_HEADER_BYTES
        return room
