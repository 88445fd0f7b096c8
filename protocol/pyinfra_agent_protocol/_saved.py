"""A session's state as bytes, for a program that hands its sessions over to its successor.

The state belongs to a session without a link.  A link is never handed over: its keys and counters stay in one
process, and what was only about it (ACK, CREDIT, BLOCKED) is stated anew on the next one (SPEC.md section 7.4).

The bytes are one msgpack map with a version.  Types, bounds and what has to hold between values are checked when it
is read: a successor that does not understand its predecessor must refuse the state, not guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final

import msgpack

from ._constants import CHANNEL_ID_MAX, FRAME_BODY_MAX_BYTES, FRAME_HEADER_BYTES, QUEUE_MAX_BYTES
from ._errors import MessageInvalid
from ._fields import Message, array, binary, boolean, choice, field, integer, record
from ._frames import FrameType

__all__ = ["SavedChannel", "SavedFrame", "SavedPart", "SavedSession", "decode_saved", "encode_saved"]

#: Changes with every change of what follows: there is no reading of other versions.
_VERSION: Final = 1
_MANY: Final = 2**20
_COUNTER: Final = integer(0, 2**63 - 1)
_KIND: Final = integer(min(FrameType), max(FrameType))
_HALF: Final = choice("flowing", "ended", "closed")


@dataclass(frozen=True, slots=True)
class SavedFrame(Message):
    """A numbered frame as it was or will be written."""

    NAME: ClassVar[str] = "saved-frame"
    header: bytes = field(binary(FRAME_HEADER_BYTES, least=FRAME_HEADER_BYTES))
    body: bytes = field(binary(FRAME_BODY_MAX_BYTES))


@dataclass(frozen=True, slots=True)
class SavedPart(Message):
    """What waits in a channel's queue; DATA may still be cut."""

    NAME: ClassVar[str] = "saved-part"
    kind: int = field(_KIND)
    stream: int = field(integer(0, 1))
    body: bytes = field(binary(64 * QUEUE_MAX_BYTES))


@dataclass(frozen=True, slots=True)
class SavedChannel(Message):
    """One channel: its halves, its windows, its queue."""

    NAME: ClassVar[str] = "saved-channel"
    number: int = field(integer(1, CHANNEL_ID_MAX))
    up: str = field(_HALF)
    down: str = field(_HALF)
    send_limit: int = field(_COUNTER)
    sent: int = field(_COUNTER)
    limit: int = field(_COUNTER)
    received: int = field(_COUNTER)
    consumed: int = field(_COUNTER)
    size: int = field(_COUNTER)
    stated: int = field(_COUNTER)
    peer_waits: bool = field(boolean())
    peer_reached: int = field(_COUNTER)
    queue: tuple[SavedPart, ...] = field(array(record(SavedPart), most=_MANY))

    def __post_init__(self) -> None:
        if not (self.sent <= self.send_limit and self.consumed <= self.received <= self.limit):
            raise MessageInvalid(f"{self.NAME}: more was sent than granted, or used than received")


@dataclass(frozen=True, slots=True)
class SavedSession(Message):
    """One session; `requests` are a connector's open channels and the names of what it asked there."""

    NAME: ClassVar[str] = "saved-session"
    version: int = field(integer(_VERSION, _VERSION))
    side: str = field(choice("connector", "agent"))
    received: int = field(_COUNTER)
    acknowledged: int = field(_COUNTER)
    channels_max: int = field(integer(1, 2**31))
    last_channel: int = field(integer(0, CHANNEL_ID_MAX))
    channels: tuple[SavedChannel, ...] = field(array(record(SavedChannel), most=_MANY))
    retained: tuple[SavedFrame, ...] = field(array(record(SavedFrame), most=_MANY))
    urgent: tuple[SavedFrame, ...] = field(array(record(SavedFrame), most=_MANY))
    requests: dict[int, str] = field(lambda value: _requests(value))

    def __post_init__(self) -> None:
        numbers = [channel.number for channel in self.channels]
        if sorted(set(numbers)) != numbers or any(number > self.last_channel for number in numbers):
            raise MessageInvalid(f"{self.NAME}: channels are out of order")
        if self.side == "connector" and set(numbers) != set(self.requests):
            raise MessageInvalid(f"{self.NAME}: a channel without a request")

    @classmethod
    def make(cls, **values: Any) -> SavedSession:
        """Return a state of this version."""
        return cls(version=_VERSION, **values)


def encode_saved(saved: SavedSession) -> bytes:
    """Return a state as bytes."""
    return bytes(msgpack.packb(_plain(saved), use_bin_type=True))


def decode_saved(data: bytes) -> SavedSession:
    """Read what `encode_saved` returned.

    Raises:
        MessageInvalid: it is something else, or of another version.
    """
    try:
        value = msgpack.unpackb(data, raw=False, strict_map_key=False)
    except (ValueError, TypeError, OverflowError, RecursionError, MemoryError, msgpack.UnpackException):
        raise MessageInvalid("the saved session is not msgpack") from None
    if type(value) is not dict:
        raise MessageInvalid("the saved session is not a map")
    return SavedSession.from_fields(value)


def _plain(value: object) -> object:
    if isinstance(value, Message):
        return {name: _plain(entry) for name, entry in value.to_fields().items()}
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    return value


def _requests(value: object) -> dict[int, str]:
    if type(value) is not dict or any(type(key) is not int or type(name) is not str for key, name in value.items()):
        raise MessageInvalid("saved-session: requests is not a map of channels to names")
    return value
