"""Two honest sessions over links that break anywhere; the fuzzer's bytes say what happens when."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from pyinfra_agent_protocol import (
    DataReceived,
    Event,
    RefusalReceived,
    RequestReceived,
    ResultReceived,
    Side,
)
from pyinfra_agent_protocol._constants import (
    QUEUE_MAX_BYTES,
)
from tests.fuzz.reader import Reader
from tests.fuzz.samples import REQUESTS, RESULTS
from tests.fuzz.watched import RETAINED_LEAST_BYTES, STEPS_MAX, Watched

if TYPE_CHECKING:
    from collections.abc import Callable


_PATTERN: Final = bytes(range(251)) * (QUEUE_MAX_BYTES // 251 + 2)


def fuzz_session_pair(data: bytes) -> None:
    """Two honest sessions over links that break anywhere: neither ever blames the other, and nothing is lost."""
    Pair(Reader(data)).run()


class Honest(Watched):
    """One of two sessions that both keep the rules; checks what arrives against what was sent."""

    def __init__(self, side: Side, reader: Reader) -> None:
        super().__init__(side, reader, RETAINED_LEAST_BYTES)
        self.flying: deque[bytes] = deque()
        self.heard: dict[tuple[int, int], int] = {}
        self.sent: dict[tuple[int, int], int] = {}
        self.unused: dict[int, int] = {}
        self.working: list[int] = []
        self.finished: set[int] = set()

    def send(self, number: int, size: int, stream: int) -> None:
        size = min(size, self.session.sendable(number))
        start = self.sent.get((number, stream), 0)
        self.session.send_data(number, _pattern(number, stream, start, size), stream)
        self.sent[number, stream] = start + size

    def hear(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, DataReceived):
                key = event.channel, event.stream
                start = self.heard.get(key, 0)
                assert event.data == _pattern(*key, start, len(event.data)), "data out of order, lost or twice"
                self.heard[key] = start + len(event.data)
                self.unused[event.channel] = self.unused.get(event.channel, 0) + len(event.data)
            elif isinstance(event, RequestReceived):
                self.working.append(event.channel)
            elif isinstance(event, (ResultReceived, RefusalReceived)):
                assert event.channel not in self.finished, "two last frames"
                self.finished.add(event.channel)


class Pair:
    """A connector and an agent, the records under way between them, and a program that moves them."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.connector, self.agent = (Honest(side, reader) for side in (Side.CONNECTOR, Side.AGENT))
        # Both sides know the number from the welcome.
        self.agent.channels_max = self.agent.session.channels_max = self.connector.channels_max
        self.ends = (self.connector, self.agent)
        self.requested = 0
        self.ended: set[int] = set()

    def run(self) -> None:
        self._link()
        steps: tuple[Callable[[], None], ...] = (
            self._open,
            self._send,
            self._send,
            self._write,
            self._write,
            self._arrive,
            self._arrive,
            self._consume,
            self._control,
            self._answer,
            self._break,
        )
        for _ in range(STEPS_MAX):
            if self.reader.exhausted:
                break
            self.reader.choice(steps)()
            for end in self.ends:
                end.check()
        self._settle()

    def _open(self) -> None:
        if self.connector.session.can_open:
            self.connector.session.open(REQUESTS[1])  # takes standard input
            self.requested += 1

    def _send(self) -> None:
        end = self._end()
        candidates = [number for number in end.channels if end.session.is_open(number) and number not in self.ended]
        if end is self.agent:
            candidates = end.working
        if candidates:
            size = self.reader.choice((1, 100, 20_000, 70_000, QUEUE_MAX_BYTES))
            stream = self.reader.number(255) % 2 if end is self.agent else 0
            end.send(self.reader.choice(candidates[:256]), size, stream)

    def _control(self) -> None:
        session = self.connector.session
        candidates = [number for number in self.connector.channels if session.is_open(number)]
        if not candidates:
            return
        number, which = self.reader.choice(candidates), self.reader.number(255) % 4
        if which == 0 and number not in self.ended:
            session.send_end(number)
            self.ended.add(number)
        elif which == 1:
            session.send_signal(number, 15)
        elif which == 2:
            session.send_resize(number, 1, 1)
        else:
            session.send_cancel(number)

    def _answer(self) -> None:
        working = self.agent.working
        if working:
            number = working.pop(self.reader.number(255) % len(working))
            self.agent.session.send_result(number, RESULTS[0])

    def _consume(self) -> None:
        end = self._end()
        if end.unused:
            number = self.reader.choice(tuple(end.unused)[:256])
            count = end.unused[number] * (1 + self.reader.number(255)) // 256
            end.session.consume(number, count)
            end.unused[number] -= count

    def _write(self) -> None:
        end = self._end()
        record = end.write()
        if record is not None:
            end.flying.append(record)

    def _arrive(self) -> None:
        self._deliver(self._end())

    def _deliver(self, sender: Honest) -> None:
        if sender.flying:
            receiver = self.agent if sender is self.connector else self.connector
            receiver.hear(receiver.session.receive_record(sender.flying.popleft()))

    def _break(self) -> None:
        for end in self.ends:
            for _ in range(self.reader.number(3)):
                self._deliver(end)
        for end in self.ends:
            end.flying.clear()
            end.session.detach()
        self._link()

    def _link(self) -> None:
        points = self.agent.session.received, self.connector.session.received
        for end, point in zip(self.ends, points, strict=True):
            end.attach(point)

    def _settle(self) -> None:
        """Carry everything both ways, answer what is open, and see that nothing was lost."""
        for _ in range(100_000):
            for end in self.ends:
                for number, count in end.unused.items():
                    end.session.consume(number, count)
                end.unused.clear()
                record = end.write()
                if record is not None:
                    end.flying.append(record)
                self._deliver(end)
            quiet = not any(end.flying or end.session.has_data_to_send for end in self.ends)
            if quiet and not self.agent.working:
                break
            if quiet:
                self.agent.session.send_result(self.agent.working.pop(), RESULTS[0])
        else:
            raise AssertionError("the two never come to rest")
        assert self.connector.finished == set(range(1, self.requested + 1)), "a request without an answer"
        assert self.connector.heard == {key: size for key, size in self.agent.sent.items() if size}
        for end in self.ends:
            end.check()
            end.finish()

    def _end(self) -> Honest:
        return self.reader.choice(self.ends)


def _pattern(number: int, stream: int, start: int, size: int) -> bytes:
    """Return *size* bytes of the content that *stream* of channel *number* has from *start*."""
    start = (start + 7 * number + 100 * stream) % 251
    return _PATTERN[start : start + size]
