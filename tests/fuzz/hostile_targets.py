"""One session against a peer that sends what it likes.

The fuzzer's bytes are a program. Each step is something that the skin does (open, send, consume, write, lose the link)
or a record of frames, most of them legal in the present state: bytes at random would never get past the first rule.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from pyinfra_agent_protocol import (
    DataReceived,
    FrameInvalid,
    LocalProtocolError,
    MessageInvalid,
    ResumeInvalid,
    Side,
    WindowExceeded,
)
from pyinfra_agent_protocol._constants import (
    CHANNEL_ID_MAX,
    FRAME_BODY_MAX_BYTES,
    QUEUE_MAX_BYTES,
    RECORD_PLAINTEXT_MAX_BYTES,
    WINDOW_INITIAL_BYTES,
    WINDOW_MAX_BYTES,
)
from pyinfra_agent_protocol._frames import NUMBERED, FrameType, encode_counter, encode_header, split_frames
from pyinfra_agent_protocol._messages import encode_request
from pyinfra_agent_protocol._session import _RECEIVES
from tests.fuzz.reader import Reader, edited
from tests.fuzz.samples import OTHERS, REQUESTS, RESULTS
from tests.fuzz.watched import RETAINED_LEAST_BYTES, STEPS_MAX, Watched

if TYPE_CHECKING:
    from collections.abc import Callable

_U64: Final = 2**64 - 1
_BULK: Final = memoryview(bytes(QUEUE_MAX_BYTES))
_LEGAL: Final = {side: sorted(kinds) for side, kinds in _RECEIVES.items()}
_SAMPLES: Final = {type(sample).__name__.upper(): sample.encode() for sample in OTHERS}
_RESULTS: Final = tuple(result.encode() for result in RESULTS)


def fuzz_session_agent(data: bytes) -> None:
    """An agent's session; the controller that it let in sends what it likes."""
    Hostile(Side.AGENT, Reader(data)).run()


def fuzz_session_connector(data: bytes) -> None:
    """A connector's session; the agent that it trusts sends what it likes."""
    Hostile(Side.CONNECTOR, Reader(data)).run()


class Hostile(Watched):
    """Runs a program against one session; its peer is the program."""

    def __init__(self, side: Side, reader: Reader) -> None:
        super().__init__(side, reader, reader.choice((RETAINED_LEAST_BYTES, 1, 70_000)))
        self.reader = reader
        self.over = False
        self.arrived: dict[int, int] = {}
        connector = (self._open, self._send_end, self._send_control)
        agent = (self._send_final,)
        self.steps: tuple[Callable[[], None], ...] = (
            self._receive,
            self._receive,
            self._receive,
            self._receive_bulk,
            self._receive_window,
            self._write_one,
            self._write_one,
            self._write_all,
            self._send_data,
            self._consume,
            self._relink,
            self._say,
            *(connector if side is Side.CONNECTOR else agent),
        )

    def run(self) -> None:
        self.attach(0)
        for _ in range(STEPS_MAX):
            if self.over or self.reader.exhausted:
                break
            # The skin may be told that it asked for something impossible. What a peer sends never is: see `_take`.
            with contextlib.suppress(LocalProtocolError):
                self.reader.choice(self.steps)()
            if not self.over:
                self.check()
        self.finish()

    # --- what the skin does ---

    def _open(self) -> None:
        possible = self.session.can_open
        try:
            self.session.open(self.reader.choice(REQUESTS))
        except LocalProtocolError:
            assert not possible, "can_open, and cannot"

    def _send_data(self) -> None:
        number = self._channel()
        size = min(self._size() * self.reader.choice((1, 1, 1, 4)), self.session.sendable(number))
        self.session.send_data(number, _BULK[:size], self.reader.number(255) % 2)

    def _send_end(self) -> None:
        self.session.send_end(self._channel(), size=self.reader.choice((None, 0, _U64)))

    def _send_control(self) -> None:
        number, which = self._channel(), self.reader.number(255) % 3
        if which == 0:
            self.session.send_signal(number, 15)
        elif which == 1:
            self.session.send_resize(number, 24, 80)
        else:
            self.session.send_cancel(number)

    def _send_final(self) -> None:
        number = self._channel()
        if self.reader.number(255) % 2:
            self.session.send_result(number, self.reader.choice(RESULTS))
        else:
            self.session.send_refusal(number, "failed", self.reader.take(40).decode("utf-8", "surrogateescape"))

    def _say(self) -> None:
        if self.reader.number(255) % 2:
            self.session.send_ping(self.reader.number(_U64))
        else:
            self.session.send_goodbye("stop", "enough")

    def _consume(self) -> None:
        number = self._channel()
        buffered = self.arrived.get(number, 0)
        count = buffered * self.reader.number(255) // 255
        self.session.consume(number, count)
        self.arrived[number] = buffered - count

    def _write_one(self) -> None:
        self.write()

    def _write_all(self) -> None:
        records = 0
        while self.write() is not None:
            records += 1
            assert records < 10_000, "there is always one more record"

    def _relink(self) -> None:
        self.session.detach()
        assert self.write() is None
        outbox = self.session._outbox
        point = outbox.acknowledged + self.reader.number(255) % (outbox.sent - outbox.acknowledged + 1)
        if self.reader.one_in(16):
            point = self.reader.number(_U64)
        possible = outbox.acknowledged <= point <= outbox.sent
        try:
            self.attach(point)
            assert possible, "a resume point that cannot be"
        except ResumeInvalid:
            assert not possible
            self.over = True

    # --- what the peer sends ---

    def _receive(self) -> None:
        record = b""
        for _ in range(1 + self.reader.number(7)):
            record += self._frame()
        if self.reader.one_in(32):
            record = edited(record, self.reader) + self.reader.take(self.reader.number(31))
        self._take(record[:RECORD_PLAINTEXT_MAX_BYTES])

    def _receive_bulk(self) -> None:
        number, size = self._channel(), self._size()
        record = encode_header(FrameType.DATA, 0, number, size) + bytes(size)
        for _ in range(self.reader.number(31)):
            if not self.over:
                self._take(record)

    def _receive_window(self) -> None:
        """All that a channel was granted, and BLOCKED: what makes a window grow once it is consumed."""
        number = self._channel()
        channel = self.channels.get(number)
        if channel is None:
            return
        window = channel.receive_window
        for _ in range(WINDOW_MAX_BYTES // FRAME_BODY_MAX_BYTES + 1):
            size = min(window.limit - window.received, FRAME_BODY_MAX_BYTES)
            if not size or self.over:
                break
            self._take(encode_header(FrameType.DATA, 0, number, size) + bytes(size))
        if not self.over:
            self._take(encode_header(FrameType.BLOCKED, 0, number, 8) + encode_counter(window.received))
        if self.reader.number(255) % 2:
            self.session.consume(number, self.arrived.pop(number, 0))

    def _frame(self) -> bytes:
        reader = self.reader
        kind = reader.choice(tuple(FrameType)) if reader.one_in(32) else reader.choice(_LEGAL[self.side])
        unchannelled = kind not in NUMBERED and kind not in (FrameType.CREDIT, FrameType.BLOCKED)
        if kind is FrameType.OPEN:
            number = self.session._last_channel + 1 + reader.number(255) // 64
        else:
            number = 0 if unchannelled else self._channel()
        if reader.one_in(32):
            number = reader.number(CHANNEL_ID_MAX)
        stream = int(kind is FrameType.DATA and self.side is Side.CONNECTOR and reader.number(255) % 2)
        body = self._body(kind, number)
        if reader.one_in(32):
            body = edited(body, reader) + reader.take(reader.number(31))
        body = body[:FRAME_BODY_MAX_BYTES]
        return encode_header(kind, stream, min(number, CHANNEL_ID_MAX), len(body)) + body

    def _body(self, kind: FrameType, number: int) -> bytes:
        reader, channel = self.reader, self.channels.get(number)
        outbox = self.session._outbox
        if kind is FrameType.OPEN:
            window = WINDOW_INITIAL_BYTES + reader.choice((0, 1, 100_000, 10**9))
            return encode_request(reader.choice(REQUESTS), window)
        if kind is FrameType.DATA:
            return bytes(self._size())
        if kind is FrameType.RESULT:
            return reader.choice(_RESULTS)
        if kind is FrameType.REFUSED:
            return _SAMPLES["REFUSAL"]
        if kind is FrameType.ACK:
            unacknowledged = outbox.sent - outbox.acknowledged
            return encode_counter(self._counter(outbox.acknowledged + reader.number(255) % (unacknowledged + 1)))
        if kind is FrameType.CREDIT:
            base = (channel.send_window.limit, channel.send_window.sent, 0) if channel else (0,)
            return encode_counter(self._counter(reader.choice(base) + self._size()))
        if kind is FrameType.BLOCKED:
            return encode_counter(self._counter(channel.receive_window.received if channel else 0))
        return _SAMPLES.get("PING" if kind is FrameType.PONG else kind.name, b"")

    def _take(self, record: bytes) -> None:
        if not self.session.is_attached:
            return
        before = self.session.received
        try:
            events = self.session.receive_record(record)
        except LocalProtocolError as error:
            raise AssertionError("a peer's bytes end in an error that blames us") from error
        except (FrameInvalid, MessageInvalid, WindowExceeded, ResumeInvalid):
            self.over = True
            last_words = self.session.next_record()
            assert last_words is not None
            assert [frame.kind for frame in split_frames(last_words)] == [FrameType.GOODBYE]
            assert self.session.next_record() is None
            return
        frames = split_frames(record)
        assert len(events) <= len(frames)
        assert self.session.received - before == sum(frame.kind in NUMBERED for frame in frames)
        for event in events:
            if isinstance(event, DataReceived):
                self.arrived[event.channel] = self.arrived.get(event.channel, 0) + len(event.data)

    # --- choices ---

    def _channel(self) -> int:
        """One of the open channels; rarely another one."""
        if self.reader.one_in(16) or not self.channels:
            return 1 + self.reader.number(255) % (self.session._last_channel + 1)
        return self.reader.choice(tuple(self.channels)[:256])

    def _size(self) -> int:
        size = self.reader.number(255)
        return max(1, size if size < 128 else FRAME_BODY_MAX_BYTES * (size - 127) // 128)

    def _counter(self, usual: int) -> int:
        return self.reader.number(_U64) if self.reader.one_in(32) else min(usual, _U64)
