"""A session: channels over links that come and go (SPEC.md sections 7 and 8).

The session outlives its links.  A link is attached with the peer's resume point and detached when it
is lost; numbered frames are delivered exactly once and in order whatever happens between.  The skin
must have stopped the old link's reader before it reads `received` for a new one: that number is the
promise that everything up to it is in this state.

The same class serves both sides; what each may be sent is the table `_RECEIVES`.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from ._channel import DOWN, UP, Channel, Half, step
from ._constants import (
    ACK_EVERY_BYTES,
    ACK_EVERY_FRAMES,
    ACK_IDLE_BYTES,
    CHANNEL_ID_MAX,
    CHANNELS_MAX,
    QUEUE_MAX_BYTES,
    RETAINED_MAX_BYTES,
    SESSION_BUDGET_BYTES,
    WINDOW_INITIAL_BYTES,
    WINDOW_OPEN_BYTES,
)
from ._errors import FrameInvalid, LocalProtocolError, MessageInvalid, RemoteProtocolError, WindowExceeded
from ._events import (
    CancelReceived,
    DataReceived,
    Event,
    GoodbyeReceived,
    PongReceived,
    RefusalReceived,
    RequestReceived,
    ResizeReceived,
    ResultReceived,
    SignalReceived,
    StreamEnded,
)
from ._frames import NUMBERED, Frame, FrameType, decode_counter, split_frames
from ._messages import (
    REQUESTS,
    Cancel,
    End,
    Goodbye,
    Message,
    Ping,
    Refusal,
    Request,
    Resize,
    Result,
    Signal,
    decode_request,
    encode_request,
)
from ._outbox import Outbox
from ._saved import SavedSession, decode_saved, encode_saved
from ._window import Budget

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["Session", "Side"]


class Side(enum.Enum):
    """Which end of the session this is."""

    CONNECTOR = "connector"
    AGENT = "agent"


_BOTH: Final = frozenset(
    {
        FrameType.DATA,
        FrameType.ACK,
        FrameType.CREDIT,
        FrameType.BLOCKED,
        FrameType.PING,
        FrameType.PONG,
        FrameType.GOODBYE,
    }
)

#: What each side may be sent once the link is welcomed; everything else ends the session.
_RECEIVES: Final[Mapping[Side, frozenset[FrameType]]] = {
    Side.AGENT: _BOTH | {FrameType.OPEN, FrameType.END, FrameType.SIGNAL, FrameType.RESIZE, FrameType.CANCEL},
    Side.CONNECTOR: _BOTH | {FrameType.RESULT, FrameType.REFUSED},
}


def _line(text: str, most: int) -> str:
    """Cut *text* to what a field holds; a file name that it quotes need not be UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()[:most]


class Session:
    """One session's state on one side.

    Bytes in: `receive_record` takes a record's plaintext and returns events.  Bytes out: the skin
    calls `next_records` until it yields none, whenever `has_data_to_send`.

    Args:
        side: which end this is.
        budget: what windows may grow by (default: the session's own 32 MiB).
        channels_max: requests that may be open at once, as the welcome said.
        retained_max_bytes: unacknowledged bytes above which neither DATA nor a request is sent.  At
            least 2 MiB: a peer need not acknowledge less than 1 MiB by itself.
    """

    def __init__(
        self,
        side: Side,
        *,
        budget: Budget | None = None,
        channels_max: int = CHANNELS_MAX,
        retained_max_bytes: int = RETAINED_MAX_BYTES,
    ) -> None:
        self.side = side
        self.channels_max = channels_max
        self.received = 0
        self._receives = _RECEIVES[side]
        self._budget = budget if budget is not None else Budget(SESSION_BUDGET_BYTES)
        self._channels: dict[int, Channel] = {}
        self._last_channel = 0
        self._outbox = Outbox(retained_max_bytes)
        self._attached = False
        self._broken = False
        self._said_received = 0
        self._unsaid_bytes = 0
        self._requests: dict[int, type[Request]] = {}
        self._handlers: dict[FrameType, Callable[[Frame], Event | None]] = {
            FrameType.OPEN: self._on_open,
            FrameType.DATA: self._on_data,
            FrameType.END: self._on_end,
            FrameType.RESULT: self._on_result,
            FrameType.REFUSED: self._on_refused,
            FrameType.SIGNAL: self._on_signal,
            FrameType.RESIZE: self._on_resize,
            FrameType.CANCEL: self._on_cancel,
            FrameType.ACK: self._on_ack,
            FrameType.CREDIT: self._on_credit,
            FrameType.BLOCKED: self._on_blocked,
            FrameType.PING: self._on_ping,
            FrameType.PONG: self._on_pong,
            FrameType.GOODBYE: self._on_goodbye,
        }

    # --- links ---

    @property
    def is_attached(self) -> bool:
        """True while a link carries the session."""
        return self._attached

    @property
    def is_idle(self) -> bool:
        """True when no request is open, and none's last frame is unacknowledged: a lost link then loses nothing."""
        return not self._channels

    @property
    def retained_bytes(self) -> int:
        """Bytes of frames that the peer has not acknowledged."""
        return self._outbox.retained_bytes

    def attach(self, peer_received: int) -> None:
        """Let a new link carry the session; *peer_received* is the resume point that the peer stated.

        Raises:
            ResumeInvalid: that many frames were never sent, or it had said more before; the session is over.
            LocalProtocolError: the old link was not detached.
        """
        if self._attached or self._broken:
            raise LocalProtocolError("the session has a link or is over")
        try:
            self._forget_closed(self._outbox.acknowledge(peer_received))
        except RemoteProtocolError:
            self._broken = True
            raise
        self._outbox.start_link()
        self._attached = True
        self._note_said()
        for channel in self._channels.values():
            channel.send_window.forget_blocked()
            if channel.queue:
                self._outbox.mark_ready(channel)
            # Not what OPEN says by itself: the agent may not have it yet, and then knows no such channel.
            if channel.receive_window.limit > channel.receive_window.stated and channel.down is not Half.CLOSED:
                self._outbox.say_credit(channel.id, channel.receive_window.limit)

    def detach(self) -> None:
        """Take the lost link away; frames are kept for the next one."""
        self._attached = False

    def close(self) -> None:
        """End the session: give windows back; nothing may be called afterwards."""
        self._attached = False
        self._broken = True
        for channel in self._channels.values():
            channel.close()
        self._channels.clear()
        self._outbox = Outbox()

    def export(self) -> bytes:
        """Return the state of a session without a link, for `restore` in another process; it must not be used again.

        Raises:
            LocalProtocolError: a link carries the session, or it is over.
        """
        if self._attached or self._broken:
            raise LocalProtocolError("a session with a link, or one that is over, cannot be handed over")
        retained, urgent = self._outbox.export()
        return encode_saved(
            SavedSession.make(
                side=self.side.value,
                received=self.received,
                acknowledged=self._outbox.acknowledged,
                channels_max=self.channels_max,
                last_channel=self._last_channel,
                channels=tuple(channel.export() for channel in self._channels.values()),
                retained=retained,
                urgent=urgent,
                requests={number: request.NAME for number, request in self._requests.items()},
            )
        )

    @classmethod
    def restore(
        cls,
        data: bytes,
        *,
        budget: Budget | None = None,
        channels_max: int = CHANNELS_MAX,
        retained_max_bytes: int = RETAINED_MAX_BYTES,
    ) -> Session:
        """Return the session whose state `export` returned; to the peer it is the same one.

        The arguments mean what they mean to a new session. A peer that was allowed more channels may use them.

        Raises:
            RemoteProtocolError: *data* is no such state, or of a version that is not understood.
        """
        saved = decode_saved(data)
        session = cls(
            Side(saved.side),
            budget=budget,
            channels_max=max(channels_max, saved.channels_max),
            retained_max_bytes=retained_max_bytes,
        )
        session.received = saved.received
        session._last_channel = saved.last_channel
        session._outbox.restore(saved.acknowledged, saved.retained, saved.urgent)
        for number, name in saved.requests.items():
            if name not in REQUESTS:
                raise MessageInvalid(f"saved-session: there is no request {name!r}")
            session._requests[number] = REQUESTS[name]
        session._channels = {channel.number: Channel.restore(channel, session._budget) for channel in saved.channels}
        return session

    # --- receiving ---

    def receive_record(self, plaintext: bytes | bytearray) -> list[Event]:
        """Take one record's plaintext, a bytearray for good; return what happened, in order.

        Raises:
            RemoteProtocolError: the peer broke the protocol and the session is over.  All that
                `next_record` still returns is a GOODBYE that says why; `close` the session after it.
        """
        if not self._attached or self._broken:
            raise LocalProtocolError("a record for a session that has no link or is over")
        events: list[Event] = []
        try:
            for frame in split_frames(plaintext):
                if frame.kind not in self._receives:
                    raise FrameInvalid(f"{frame.kind.name} sent to the {self.side.value}")
                if frame.kind in NUMBERED:
                    self.received += 1
                    self._unsaid_bytes += len(frame.body)
                elif frame.channel and frame.kind not in (FrameType.CREDIT, FrameType.BLOCKED):
                    raise FrameInvalid(f"{frame.kind.name} on channel {frame.channel}")
                event = self._handlers[frame.kind](frame)
                if event is not None:
                    events.append(event)
        except RemoteProtocolError as error:
            self._broken = True
            self._outbox = Outbox()
            self.send_goodbye(error.code, str(error))
            raise
        worth_bytes = ACK_EVERY_BYTES if self._channels else ACK_IDLE_BYTES
        if self.received - self._said_received >= ACK_EVERY_FRAMES or self._unsaid_bytes >= worth_bytes:
            self._outbox.say_ack(self.received)
        return events

    def consume(self, channel: int, count: int) -> None:
        """Note that *count* received bytes of *channel* were used up, so that more may be granted."""
        found = self._channels.get(channel)
        if found is None or found.down is Half.CLOSED or self._broken:
            return
        limit = found.receive_window.consume(count)
        if limit is not None and (self.side is Side.CONNECTOR or found.up is Half.FLOWING):
            self._outbox.say_credit(channel, limit)

    # --- sending ---

    @property
    def has_data_to_send(self) -> bool:
        """True when `next_record` would return a record."""
        return self._attached and not self._outbox.is_empty

    def next_records(self, worth_bytes: int) -> Iterator[list[bytes | memoryview]]:
        """Yield the plaintexts of the next records, each in parts, until they have *worth_bytes* or nothing is left."""
        while worth_bytes > 0:
            parts, size = self._next_parts()
            if not parts:
                return
            yield parts
            worth_bytes -= size

    def next_record(self) -> bytes | None:
        """Return the plaintext of the next record, or None if there is nothing to send now."""
        parts, _ = self._next_parts()
        return b"".join(parts) or None

    def _next_parts(self) -> tuple[list[bytes | memoryview], int]:
        if not self._attached or self._outbox.is_empty:
            return [], 0
        # Whatever is sent acknowledges as well, and first: the agent counts a request until its last frame is
        # acknowledged, so an OPEN that the connector may send never comes too early.
        if self.received != self._said_received and not self._broken:
            self._outbox.say_ack(self.received)
            self._note_said()
        return self._outbox.next_record()

    @property
    def can_open(self) -> bool:
        """True when one more request may be sent now; ask again after every record received."""
        return len(self._channels) < self.channels_max and not self._outbox.is_full

    def open(self, request: Request) -> int:
        """Connector: start a request; return its channel.

        Raises:
            LocalProtocolError: not `can_open`, or the request does not fit a frame.
        """
        if self.side is not Side.CONNECTOR or self._broken:
            raise LocalProtocolError("only a connector with a living session opens channels")
        if not self.can_open or self._last_channel >= CHANNEL_ID_MAX:
            raise LocalProtocolError(f"no more requests for now: {len(self._channels)} are open")
        number = self._last_channel + 1
        channel = Channel(number, self._budget)
        if request.GIVES_DATA:
            channel.receive_window.widen(WINDOW_OPEN_BYTES)
        channel.receive_window.stated = channel.receive_window.limit
        try:
            body = encode_request(request, channel.receive_window.limit)
        except LocalProtocolError:
            channel.close()
            raise
        self._last_channel = number
        self._channels[number] = channel
        self._requests[number] = type(request)
        self._outbox.push_urgent(FrameType.OPEN, number, body)
        return number

    def is_open(self, channel: int) -> bool:
        """True until the last frame of *channel* was received (connector) or queued (agent)."""
        found = self._channels.get(channel)
        return found is not None and found.down is not Half.CLOSED

    def was_written(self, channel: int) -> bool:
        """Connector: True once the request of *channel* was written to a link, whether or not it arrived."""
        return not self._outbox.is_waiting(channel)

    def window_size(self, channel: int) -> int:
        """Bytes that the peer may have sent on *channel* before the reader has consumed them."""
        found = self._channels.get(channel)
        return found.receive_window.size if found is not None else WINDOW_INITIAL_BYTES

    def sendable(self, channel: int) -> int:
        """Bytes that `send_data` should be given now; 0 means wait until records were written."""
        found = self._channels.get(channel)
        return max(0, QUEUE_MAX_BYTES - found.queued_bytes) if found is not None else 0

    def send_data(self, channel: int, data: bytes | memoryview, stream: int = 0) -> None:
        """Queue DATA; the window decides when it goes.  Empty data is nothing.

        *data* is kept by reference until the peer has acknowledged it: its buffer must not change.
        """
        found = self._require(channel)
        if stream and self.side is Side.CONNECTOR:
            raise LocalProtocolError("only an agent has a second stream to send")
        self._step_own(found, FrameType.DATA)
        if data:
            found.push(FrameType.DATA, stream, data)
            self._outbox.mark_ready(found)

    def send_end(self, channel: int, *, size: int | None = None, digest: bytes | None = None) -> None:
        """Connector: no more DATA follows on *channel*."""
        found = self._require(channel)
        body = End(size, digest).encode()
        self._step_own(found, FrameType.END)
        found.push(FrameType.END, 0, body)
        self._outbox.mark_ready(found)

    def send_signal(self, channel: int, signal: int) -> None:
        """Connector: deliver *signal* to the command, ahead of its standard input."""
        self._send_control(channel, FrameType.SIGNAL, Signal(signal))

    def send_resize(self, channel: int, rows: int, columns: int) -> None:
        """Connector: the terminal has this size now."""
        self._send_control(channel, FrameType.RESIZE, Resize(rows, columns))

    def send_cancel(self, channel: int) -> None:
        """Connector: end the request; its result still arrives."""
        self._send_control(channel, FrameType.CANCEL, Cancel())

    def send_result(self, channel: int, result: Result) -> None:
        """Agent: answer the request, behind all of its DATA."""
        self._send_final(channel, FrameType.RESULT, result)

    def send_refusal(self, channel: int, code: str, text: str) -> None:
        """Agent: refuse the request or say how it failed, behind all of its DATA."""
        self._send_final(channel, FrameType.REFUSED, Refusal(code, _line(text, 4096)))

    def send_ping(self, number: int) -> None:
        """Ask for a sign of life on this link."""
        self._outbox.say(FrameType.PING, Ping(number).encode())

    def send_goodbye(self, code: str, text: str = "") -> None:
        """Say why this link is about to be closed."""
        self._outbox.say(FrameType.GOODBYE, Goodbye(code, _line(text, 1024)).encode())

    # --- inside ---

    def _note_said(self) -> None:
        self._said_received = self.received
        self._unsaid_bytes = 0

    def _forget_closed(self, channels: list[int]) -> None:
        for number in channels:
            del self._channels[number]

    def _require(self, channel: int) -> Channel:
        found = self._channels.get(channel)
        if found is None or found.down is Half.CLOSED or self._broken:
            raise LocalProtocolError(f"channel {channel} is not open")
        return found

    def _step_own(self, channel: Channel, kind: FrameType) -> None:
        """Hold ourselves to the same table as the peer; the blame differs."""
        try:
            if self.side is Side.CONNECTOR:
                channel.up = step(UP, channel.up, kind)
            else:
                channel.down = step(DOWN, channel.down, kind)
        except FrameInvalid as error:
            raise LocalProtocolError(str(error)) from None

    def _send_control(self, channel: int, kind: FrameType, message: Message) -> None:
        self._step_own(self._require(channel), kind)
        self._outbox.push_urgent(kind, channel, message.encode())

    def _send_final(self, channel: int, kind: FrameType, message: Message) -> None:
        found = self._require(channel)
        body = message.encode()
        self._step_own(found, kind)
        found.close()
        found.push(kind, 0, body)
        self._outbox.mark_ready(found)

    def _channel_of(self, frame: Frame) -> Channel | None:
        """Find the channel of a frame; None if it was closed and forgotten.

        Raises:
            FrameInvalid: it was never opened.
        """
        if not 1 <= frame.channel <= self._last_channel:
            raise FrameInvalid(f"{frame.kind.name} on channel {frame.channel}, which was never opened")
        if self._outbox.is_waiting(frame.channel):
            raise FrameInvalid(f"{frame.kind.name} on channel {frame.channel}, which the peer cannot know yet")
        return self._channels.get(frame.channel)

    def _receive_up(self, frame: Frame) -> Channel | None:
        """Move the up half for a frame that the agent received; None if it came late."""
        channel = self._channel_of(frame)
        if channel is None:
            return None
        channel.up = step(UP, channel.up, frame.kind)
        return channel if channel.up is not Half.CLOSED else None

    def _on_open(self, frame: Frame) -> Event | None:
        if frame.channel <= self._last_channel:
            raise FrameInvalid(f"channel {frame.channel} opened after {self._last_channel}")
        if len(self._channels) >= self.channels_max:
            raise WindowExceeded(f"more than {self.channels_max} requests open")
        self._last_channel = frame.channel
        channel = self._channels[frame.channel] = Channel(frame.channel, self._budget)
        try:
            request, window = decode_request(frame.body)
        except MessageInvalid as error:
            self.send_refusal(frame.channel, "bad-request", str(error))
            return None
        channel.send_window.grant(window)
        if request.takes_data and channel.receive_window.widen(WINDOW_OPEN_BYTES):
            self._outbox.say_credit(frame.channel, channel.receive_window.limit)
        return RequestReceived(frame.channel, request)

    def _on_data(self, frame: Frame) -> Event | None:
        if not frame.body:
            raise FrameInvalid("an empty DATA frame")
        if self.side is Side.AGENT:
            if frame.stream:
                raise FrameInvalid("DATA for a second stream sent to the agent")
            channel = self._receive_up(frame)
        else:
            channel = self._channel_of(frame)
            if channel is None:
                raise FrameInvalid(f"DATA on channel {frame.channel} after its last frame")
            channel.down = step(DOWN, channel.down, frame.kind)
        if channel is None:
            return None
        channel.receive_window.receive(len(frame.body))
        return DataReceived(frame.channel, frame.stream, frame.body)

    def _on_end(self, frame: Frame) -> Event | None:
        end = End.decode(frame.body)
        if self._receive_up(frame) is None:
            return None
        # A small file is there with its request, in one record: to grant it more would cost a record of our own.
        self._outbox.forget_credit(frame.channel)
        return StreamEnded(frame.channel, end.size, end.digest)

    def _on_signal(self, frame: Frame) -> Event | None:
        signal = Signal.decode(frame.body)
        return SignalReceived(frame.channel, signal) if self._receive_up(frame) else None

    def _on_resize(self, frame: Frame) -> Event | None:
        size = Resize.decode(frame.body)
        return ResizeReceived(frame.channel, size) if self._receive_up(frame) else None

    def _on_cancel(self, frame: Frame) -> Event | None:
        Cancel.decode(frame.body)
        return CancelReceived(frame.channel) if self._receive_up(frame) else None

    def _receive_final(self, frame: Frame) -> type[Request]:
        channel = self._channel_of(frame)
        if channel is None:
            raise FrameInvalid(f"a second {frame.kind.name} on channel {frame.channel}")
        channel.down = step(DOWN, channel.down, frame.kind)
        channel.close()
        del self._channels[frame.channel]
        self._outbox.forget(frame.channel)
        return self._requests.pop(frame.channel)

    def _on_result(self, frame: Frame) -> Event | None:
        request = self._receive_final(frame)
        return ResultReceived(frame.channel, request.RESULT.decode(frame.body))

    def _on_refused(self, frame: Frame) -> Event | None:
        refusal = Refusal.decode(frame.body)
        self._receive_final(frame)
        return RefusalReceived(frame.channel, refusal)

    def _on_ack(self, frame: Frame) -> Event | None:
        self._forget_closed(self._outbox.acknowledge(decode_counter(frame)))
        return None

    def _on_credit(self, frame: Frame) -> Event | None:
        limit = decode_counter(frame)
        channel = self._channel_of(frame)
        if channel is not None and channel.send_window.grant(limit) and channel.queue:
            self._outbox.mark_ready(channel)
        return None

    def _on_blocked(self, frame: Frame) -> Event | None:
        reached = decode_counter(frame)
        channel = self._channel_of(frame)
        if channel is not None and channel.down is not Half.CLOSED:
            limit = channel.receive_window.receive_blocked(reached)
            if limit is not None:
                self._outbox.say_credit(frame.channel, limit)
        return None

    def _on_ping(self, frame: Frame) -> Event | None:
        self._outbox.say(FrameType.PONG, Ping.decode(frame.body).encode())
        return None

    def _on_pong(self, frame: Frame) -> Event | None:
        return PongReceived(Ping.decode(frame.body).id)

    def _on_goodbye(self, frame: Frame) -> Event | None:
        return GoodbyeReceived(Goodbye.decode(frame.body))
