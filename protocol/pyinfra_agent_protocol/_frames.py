"""Frames: what a record's plaintext consists of (SPEC.md section 6).

A frame is eight bytes of header and a body.  Several frames share a record; none crosses one.
"""

from __future__ import annotations

import enum
import struct
from typing import Final, NamedTuple

from ._constants import FRAME_BODY_MAX_BYTES, FRAME_HEADER_BYTES
from ._errors import FrameInvalid, LocalProtocolError

__all__ = ["NUMBERED", "Frame", "FrameType", "decode_counter", "encode_counter", "encode_header", "split_frames"]


class FrameType(enum.IntEnum):
    """What a frame is; the numbers are those on the wire."""

    OPEN = 1
    DATA = 2
    END = 3
    RESULT = 4
    REFUSED = 5
    SIGNAL = 6
    RESIZE = 7
    CANCEL = 8

    ACK = 16
    CREDIT = 17
    BLOCKED = 18
    PING = 19
    PONG = 20
    GOODBYE = 21

    WELCOME = 32
    DENIED = 33


#: Counted, kept until acknowledged, and replayed to a new link (SPEC.md section 7).
NUMBERED: Final = frozenset(
    {
        FrameType.OPEN,
        FrameType.DATA,
        FrameType.END,
        FrameType.RESULT,
        FrameType.REFUSED,
        FrameType.SIGNAL,
        FrameType.RESIZE,
        FrameType.CANCEL,
    }
)

_HEADER: Final = struct.Struct(">BBIH")
_COUNTER: Final = struct.Struct(">Q")
_TYPES: Final = {int(kind): kind for kind in FrameType}


class Frame(NamedTuple):
    """One frame as it was read: `stream` tells stdout (0) from stderr (1) in DATA, else 0."""

    kind: FrameType
    stream: int
    channel: int
    body: bytes | bytearray


def encode_header(kind: FrameType, stream: int, channel: int, length: int) -> bytes:
    """Return the eight bytes that stand before a body of *length* bytes."""
    if length > FRAME_BODY_MAX_BYTES:
        raise LocalProtocolError(f"a {kind.name} body of {length} bytes does not fit a record")
    return _HEADER.pack(kind, stream, channel, length)


def encode_counter(value: int) -> bytes:
    """Return the body of an ACK, CREDIT or BLOCKED frame."""
    return _COUNTER.pack(value)


def decode_counter(frame: Frame) -> int:
    """Read the body of an ACK, CREDIT or BLOCKED frame.

    Raises:
        FrameInvalid: the body is not eight bytes.
    """
    if len(frame.body) != _COUNTER.size:
        raise FrameInvalid(f"a {frame.kind.name} frame of {len(frame.body)} bytes instead of {_COUNTER.size}")
    return int(_COUNTER.unpack(frame.body)[0])


def split_frames(plaintext: bytes | bytearray) -> list[Frame]:
    """Cut a record's plaintext into its frames; an empty record holds none.

    A bytearray becomes the body of its last frame, if that is DATA and fills most of it: then nothing is copied.

    Raises:
        FrameInvalid: a frame is cut short, of an unknown type, or has a stream where none belongs.
    """
    frames: list[Frame] = []
    at, end = 0, len(plaintext)
    while at < end:
        if end - at < FRAME_HEADER_BYTES:
            raise FrameInvalid("a record ends inside a frame's header")
        number, stream, channel, length = _HEADER.unpack_from(plaintext, at)
        at += FRAME_HEADER_BYTES
        kind = _TYPES.get(number)
        if kind is None:
            raise FrameInvalid(f"frame type {number} is unknown")
        if stream > 1 or (stream and kind is not FrameType.DATA):
            raise FrameInvalid(f"stream {stream} in a {kind.name} frame")
        if length > end - at:
            raise FrameInvalid(f"a {kind.name} frame of {length} bytes in a record with {end - at} left")
        stop = at + length
        if isinstance(plaintext, bytes):
            body: bytes | bytearray = plaintext[at:stop]
        elif stop == end and length > end // 2 and kind is FrameType.DATA:
            del plaintext[:at]  # which moves nothing but the array's start
            body = plaintext
        else:
            # What is kept must not keep more alive than it is: a peer is charged for bodies, not for records.
            body = bytes(memoryview(plaintext)[at:stop])
        frames.append(Frame(kind, stream, channel, body))
        at = stop
    return frames
