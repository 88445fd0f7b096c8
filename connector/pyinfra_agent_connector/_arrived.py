r"""What arrived of a command's two outputs: their bytes, and the lines of both in the order in which these ended.

Each stream is one growing buffer: it costs its bytes, whatever the pieces were in which they came, and gives text
without a second copy of them. Where a piece of one stream came between two of the other costs eight bytes.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Arrived", "Stream"]

Stream = Literal["stdout", "stderr"]

_STREAMS: Final[tuple[Stream, Stream]] = ("stdout", "stderr")

#: Lines are made of so much at once: more would be held twice for a reader that drops each line.
_WINDOW_BYTES: Final = 64 * 1024


class Arrived:
    r"""The bytes of both streams.

    A line ends with `\n`, which is no part of it. What stands behind the last `\n` of a stream is a line too, after
    all others: stdout's, then stderr's.

    Args:
        errors: how bytes that are not UTF-8 become text, as for `bytes.decode`: a handler that works byte by byte.
    """

    def __init__(self, errors: str) -> None:
        self._errors = errors
        self._data: dict[Stream, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        # Lengths of what came without a break of the other stream: of stdout, of stderr, of stdout, and so on.
        self._runs = array("Q", [0])

    def feed(self, stream: Stream, data: bytes) -> None:
        """Add *data*."""
        self._data[stream] += data
        if _STREAMS[(len(self._runs) - 1) % 2] == stream:
            self._runs[-1] += len(data)
        else:
            self._runs.append(len(data))

    def content(self, stream: Stream) -> bytes:
        """Return a copy of all that arrived on *stream*."""
        return bytes(self._data[stream])

    def text(self, stream: Stream) -> str:
        """Return the lines of *stream*, joined by newlines."""
        data = self._data[stream]
        return self._decoded(stream, 0, len(data) - data.endswith(b"\n"))

    def lines_of(self, stream: Stream) -> list[str]:
        """Return the lines of *stream*."""
        data = self._data[stream]
        lines: list[str] = []
        for start in range(0, len(data), _WINDOW_BYTES):
            lines += self._ended_in(stream, start, start + _WINDOW_BYTES)
        return lines + self._unfinished(stream)

    def blocks(self) -> Iterator[tuple[Stream, list[str]]]:
        """Give the lines of both streams in their order, those that follow one another on one stream at once."""
        for stream, start, end in self._windows():
            if lines := self._ended_in(stream, start, end):
                yield stream, lines
        for stream in _STREAMS:
            yield stream, self._unfinished(stream)

    def blocks_backwards(self) -> Iterator[tuple[Stream, list[str]]]:
        """As `blocks`, the last block first; the lines in each as there."""
        for stream in reversed(_STREAMS):
            yield stream, self._unfinished(stream)
        for stream, start, end in self._windows_backwards():
            if lines := self._ended_in(stream, start, end):
                yield stream, lines

    def __len__(self) -> int:
        """The number of lines."""
        return sum(data.count(b"\n") + len(self._unfinished(stream)) for stream, data in self._data.items())

    def _windows(self) -> Iterator[tuple[Stream, int, int]]:
        places: dict[Stream, int] = dict.fromkeys(_STREAMS, 0)
        for number, length in enumerate(self._runs):
            stream = _STREAMS[number % 2]
            start = places[stream]
            end = places[stream] = start + length
            for place in range(start, end, _WINDOW_BYTES):
                yield stream, place, min(place + _WINDOW_BYTES, end)

    def _windows_backwards(self) -> Iterator[tuple[Stream, int, int]]:
        places: dict[Stream, int] = {stream: len(data) for stream, data in self._data.items()}
        for number in reversed(range(len(self._runs))):
            stream = _STREAMS[number % 2]
            end = places[stream]
            start = places[stream] = end - self._runs[number]
            while end > start:
                place = max(start, end - _WINDOW_BYTES)
                yield stream, place, end
                end = place

    def _ended_in(self, stream: Stream, start: int, end: int) -> list[str]:
        """Return the lines whose newline is from *start* to before *end*; the first may have begun earlier."""
        data = self._data[stream]
        last = data.rfind(b"\n", start, end)
        if last < 0:
            return []
        return self._decoded(stream, data.rfind(b"\n", 0, start) + 1, last).split("\n")

    def _unfinished(self, stream: Stream) -> list[str]:
        data = self._data[stream]
        start = data.rfind(b"\n") + 1
        return [self._decoded(stream, start, len(data))] if start < len(data) else []

    def _decoded(self, stream: Stream, start: int, end: int) -> str:
        # Released at once: a bytearray that somebody has a view of cannot grow.
        with memoryview(self._data[stream]) as view, view[start:end] as part:
            return str(part, "utf-8", self._errors)
