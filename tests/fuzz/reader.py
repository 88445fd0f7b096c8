"""A fuzzer's bytes as decisions: numbers, choices, edits of a valid stream, and where to cut it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

T = TypeVar("T")


class Reader:
    """Hands out *data* as decisions; when it is used up every number is 0 and every string empty."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def exhausted(self) -> bool:
        return self._at >= len(self._data)

    def take(self, count: int) -> bytes:
        """Return the next *count* bytes, or those that are left."""
        taken = self._data[self._at : self._at + count]
        self._at += len(taken)
        return taken

    def rest(self) -> bytes:
        """Return all that is left."""
        return self.take(len(self._data))

    def number(self, most: int) -> int:
        """Return a number from 0 to *most*; it takes as many bytes as *most* has."""
        return int.from_bytes(self.take((most.bit_length() + 7) // 8), "big") % (most + 1)

    def choice(self, options: Sequence[T]) -> T:
        """Return one of at most 256 *options*."""
        return options[self.number(255) % len(options)]

    def one_in(self, count: int) -> bool:
        """Return True for one of *count* byte values that are as likely as each other; never at the end."""
        return self.number(255) % count == count - 1


def edited(stream: bytes, reader: Reader) -> bytes:
    """Return *stream* after up to three edits; half of the time there is none."""
    data = bytearray(stream)
    for _ in range(max(0, reader.number(255) % 8 - 4)):
        at = reader.number(0xFFFF) % (len(data) + 1)
        edit = reader.number(255) % 4
        if edit == 0:
            data[at : at + 1] = bytes([data[at] ^ (1 << reader.number(7))]) if at < len(data) else b""
        elif edit == 1:
            data[at:at] = reader.take(reader.number(255))
        elif edit == 2:
            del data[at : at + 1 + reader.number(255)]
        else:
            del data[at:]
    return bytes(data)


def chunks(stream: bytes, reader: Reader) -> Iterator[bytes]:
    """Cut *stream* into pieces as TCP might; at least one, and some may be empty."""
    at = 0
    for _ in range(64):
        size = reader.number(255)
        if not size:
            break
        # Small sizes are exact, as that is where headers are cut; large ones reach across records.
        size = size - 1 if size < 128 else (size - 127) * 600
        yield stream[at : at + size]
        at += size
    yield stream[at:]
