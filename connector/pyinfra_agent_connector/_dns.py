"""DNS messages as typed records: questions out, answers in (RFC 1035, RFC 6762 section 18, RFC 6763).

Only what discovery needs. Anybody can send an answer, so what it may cost is bounded before anything is made of it, and
a name is a plain tuple: five thousand agents are twenty thousand of them.
"""

from __future__ import annotations

import enum
import io
import ipaddress
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

__all__ = [
    "Address",
    "Answer",
    "BadMessage",
    "Kind",
    "KnownAnswer",
    "Name",
    "Pointer",
    "Question",
    "Record",
    "Service",
    "Text",
    "label_text",
    "name_text",
    "parse_answer",
    "to_name",
    "wire_size",
    "write_query",
]

MAX_RECORDS: Final = 6000  # 65,535 bytes hold no more that say anything
MAX_TEXT_BYTES: Final = 1300  # RFC 6763 section 6.2: larger TXT records are not for the network

_HEADER: Final = struct.Struct(">HHHHHH")
_TYPE_CLASS: Final = struct.Struct(">HH")
_RECORD: Final = struct.Struct(">HHIH")
_SRV: Final = struct.Struct(">HHH")

_RESPONSE: Final = 0x8000
_OPCODE: Final = 0x7800
_TRUNCATED: Final = 0x0200
_RECURSION_DESIRED: Final = 0x0100
_RCODE: Final = 0x000F
_CLASS: Final = 0x7FFF  # the top bit is the cache-flush bit of an answer
_UNICAST_WANTED: Final = 0x8000  # the same bit of a question (RFC 6762 section 5.4)
_IN: Final = 1
_OPT: Final = 41  # RFC 6891

_POINTER: Final = 0xC0
_OFFSET: Final = struct.Struct(">H")
_MAX_OFFSET: Final = 1 << 14
_MAX_NAME_BYTES: Final = 255
_MAX_LABEL_BYTES: Final = 63
_MAX_JUMPS: Final = 32

_EDNS_BYTES: Final = 1232  # DNS flag day 2020: larger answers are fragmented somewhere


#: A domain name: its labels in lower case, without that of the root.
Name = tuple[bytes, ...]


class Kind(enum.IntEnum):
    """Types of records (RFC 1035 section 3.2.2, RFC 2782, RFC 3596)."""

    A = 1
    PTR = 12
    TXT = 16
    AAAA = 28
    SRV = 33
    ANY = 255


class BadMessage(ValueError):
    """These bytes are no DNS message, or one that asks for too much work."""


@dataclass(frozen=True, slots=True)
class Pointer:
    """PTR: an instance of a service, or a domain to browse."""

    target: Name


@dataclass(frozen=True, slots=True)
class Service:
    """SRV: where an instance listens."""

    target: Name
    port: int


@dataclass(frozen=True, slots=True)
class Text:
    """TXT: its strings."""

    strings: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Address:
    """A or AAAA, in canonical text."""

    text: str


@dataclass(frozen=True, slots=True)
class Record:
    """One resource record of class IN."""

    name: Name
    ttl: int
    data: Pointer | Service | Text | Address


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked for: all records of one type at *name*."""

    name: Name
    kind: Kind


@dataclass(frozen=True, slots=True)
class KnownAnswer:
    """A PTR record that need not be sent again (RFC 6762 section 7.1)."""

    name: Name
    ttl: int
    target: Name


@dataclass(frozen=True, slots=True)
class Answer:
    """A response.

    Attributes:
        identifier: that of the question; 0 in multicast.
        code: RCODE.
        is_truncated: more did not fit: ask by TCP.
        questions: as repeated by the server.
        records: of all sections, those of other types left out.
    """

    identifier: int
    code: int
    is_truncated: bool
    questions: tuple[Question, ...]
    records: tuple[Record, ...]


def write_query(
    questions: Iterable[Question],
    *,
    identifier: int = 0,
    unicast: bool = False,
    recursion: bool = False,
    known: Sequence[KnownAnswer] = (),
    max_bytes: int = 1400,
) -> bytes:
    """Return a query of *questions*.

    Args:
        questions: few enough to fit.
        identifier: to find the answer by.
        unicast: set the bit that asks a multicast responder to answer us alone.
        recursion: ask a server, and not the link, with EDNS.
        known: answers that need not be sent; those that do not fit are left out, which costs a repetition.
        max_bytes: of the whole.
    """
    wire = io.BytesIO(bytes(_HEADER.size))
    wire.seek(_HEADER.size)
    written: dict[Name, int] = {}
    counts = [0, 0, 0, 0]
    for question in questions:
        _write_name(wire, question.name, written)
        wire.write(_TYPE_CLASS.pack(question.kind, _IN | (_UNICAST_WANTED if unicast else 0)))
        counts[0] += 1
    for answer in known:
        if wire.tell() + _MAX_NAME_BYTES + _RECORD.size > max_bytes:
            break
        _write_name(wire, answer.name, written)
        header_at = wire.tell()
        wire.seek(_RECORD.size, io.SEEK_CUR)
        _write_name(wire, answer.target, written)
        end = wire.tell()
        wire.seek(header_at)
        wire.write(_RECORD.pack(Kind.PTR, _IN, answer.ttl, end - header_at - _RECORD.size))
        wire.seek(end)
        counts[1] += 1
    if recursion:
        wire.write(b"\0" + _RECORD.pack(_OPT, _EDNS_BYTES, 0, 0))
        counts[3] += 1
    wire.seek(0)
    wire.write(_HEADER.pack(identifier, _RECURSION_DESIRED if recursion else 0, *counts))
    return wire.getvalue()


def _write_name(wire: io.BytesIO, name: Name, written: dict[Name, int]) -> None:
    """Write *name*, the end of it as a pointer to where that was *written* before (RFC 1035 section 4.1.4)."""
    for number, label in enumerate(name):
        rest = name[number:]
        if rest in written:
            wire.write(_OFFSET.pack(_POINTER << 8 | written[rest]))
            return
        if wire.tell() < _MAX_OFFSET:
            written[rest] = wire.tell()
        wire.write(bytes([len(label)]) + label)
    wire.write(b"\0")


def parse_answer(data: bytes) -> Answer | None:
    """Return what the response *data* says, or None if it is not a response to a query.

    Raises:
        BadMessage: it is no DNS message.
    """
    try:
        return _parse(data)
    except (struct.error, IndexError):
        raise BadMessage("the message ends in the middle of a record") from None


def to_name(text: str) -> Name:
    """Return the name that *text* is, of labels without dots in them.

    Raises:
        ValueError: a label or all of it is too long, or empty.
    """
    labels = tuple(label.encode().lower() for label in text.removesuffix(".").split("."))
    if not all(0 < len(label) <= _MAX_LABEL_BYTES for label in labels) or wire_size(labels) > _MAX_NAME_BYTES:
        raise ValueError(f"{text[:80]!r} is no domain name")
    return labels


def wire_size(name: Name) -> int:
    """Return how many bytes *name* has in a message, where it is not compressed."""
    return sum(len(label) + 1 for label in name) + 1


def name_text(name: Name) -> str:
    """Return a *name* for people and for the system's resolver: without the final dot, printable ASCII or UTF-8."""
    return ".".join(map(label_text, name))


def label_text(label: bytes) -> str:
    """Return a *label* as text that no terminal obeys: what cannot be printed becomes `?`."""
    return "".join(c if c.isprintable() and c != "\ufffd" else "?" for c in label.decode("utf-8", "replace"))


def _parse(data: bytes) -> Answer | None:
    identifier, flags, *counts = _HEADER.unpack_from(data)
    if not flags & _RESPONSE or flags & _OPCODE:
        return None
    reader = _Reader(data)
    if sum(counts) > MAX_RECORDS or counts[0] > 16:
        raise BadMessage(f"the message claims to hold {sum(counts)} records")
    questions = tuple(reader.questions(counts[0]))
    return Answer(
        identifier,
        flags & _RCODE,
        bool(flags & _TRUNCATED),
        questions,
        tuple(reader.records(sum(counts[1:]))),
    )


class _Reader:
    """Reads one message from its start to its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = _HEADER.size
        # Nearly every name of an answer points to one that stood before.
        self._names: dict[int, Name] = {}

    def questions(self, count: int) -> Iterator[Question]:
        for _ in range(count):
            name = self._take_name()
            kind, _class = _TYPE_CLASS.unpack_from(self._data, self._at)
            self._at += _TYPE_CLASS.size
            if kind in _KINDS:
                yield Question(name, Kind(kind))

    def records(self, count: int) -> Iterator[Record]:
        for _ in range(count):
            start = self._at
            self._skip_name()
            kind, rdclass, ttl, size = _RECORD.unpack_from(self._data, self._at)
            begin = self._at + _RECORD.size
            self._at = begin + size
            if self._at > len(self._data):
                raise BadMessage("a record is longer than the message")
            if rdclass & _CLASS != _IN or kind not in _READERS:
                continue
            found = _READERS[kind](self, begin, size)
            if found is not None:
                yield Record(self._name_at(start), ttl, found)

    def _take_name(self) -> Name:
        start = self._at
        self._skip_name()
        return self._name_at(start)

    def _skip_name(self) -> None:
        data, at = self._data, self._at
        while length := data[at]:
            if length >= _POINTER:
                at += 1
                break
            at += length + 1
        self._at = at + 1

    def _name_at(self, start: int) -> Name:
        """Return the name at *start*; compression may only point backwards, and a name has 255 bytes at most."""
        data = self._data
        key = at = start
        if data[at] >= _POINTER:
            key = at = (data[at] & ~_POINTER) << 8 | data[at + 1]
            if at >= start:
                raise BadMessage("a compressed name points forwards")
        if key in self._names:
            return self._names[key]
        labels: list[bytes] = []
        size = jumps = 0
        lowest = at
        while length := data[at]:
            if length >= _POINTER:
                target = (length & ~_POINTER) << 8 | data[at + 1]
                jumps += 1
                if target >= lowest or jumps > _MAX_JUMPS:
                    raise BadMessage("a compressed name points forwards, or runs in circles")
                lowest = at = target
                continue
            size += length + 1
            if length > _MAX_LABEL_BYTES or size >= _MAX_NAME_BYTES:
                raise BadMessage("a name is too long")
            label = data[at + 1 : at + 1 + length]
            if len(label) != length:
                raise BadMessage("a name ends with the message")
            labels.append(label.lower())
            at += length + 1
        name = self._names[key] = tuple(labels)
        return name

    def _pointer(self, begin: int, size: int) -> Pointer | None:
        return Pointer(self._name_at(begin)) if size else None

    def _service(self, begin: int, size: int) -> Service | None:
        if size <= _SRV.size:
            return None
        _priority, _weight, port = _SRV.unpack_from(self._data, begin)
        return Service(self._name_at(begin + _SRV.size), port) if port else None

    def _text(self, begin: int, size: int) -> Text | None:
        if size > MAX_TEXT_BYTES:
            return None
        strings = []
        at, end = begin, begin + size
        while at < end:
            after = at + 1 + self._data[at]
            if after > end:
                return None
            strings.append(self._data[at + 1 : after])
            at = after
        return Text(tuple(strings))

    def _ipv4(self, begin: int, size: int) -> Address | None:
        if size != ipaddress.IPV4LENGTH // 8:
            return None
        return Address(str(ipaddress.IPv4Address(self._data[begin : begin + size])))

    def _ipv6(self, begin: int, size: int) -> Address | None:
        if size != ipaddress.IPV6LENGTH // 8:
            return None
        return Address(ipaddress.IPv6Address(self._data[begin : begin + size]).compressed)


_KINDS: Final = frozenset(map(int, Kind))
_READERS: Final[dict[int, Callable[[_Reader, int, int], Pointer | Service | Text | Address | None]]] = {
    Kind.A: _Reader._ipv4,
    Kind.PTR: _Reader._pointer,
    Kind.TXT: _Reader._text,
    Kind.AAAA: _Reader._ipv6,
    Kind.SRV: _Reader._service,
}
