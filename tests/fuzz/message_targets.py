"""Message bodies and frames from hostile bytes: read within their bounds, or refused."""

from __future__ import annotations

from typing import Final

from pyinfra_agent_protocol import FrameInvalid, MessageInvalid, decode_answer
from pyinfra_agent_protocol._constants import FRAME_BODY_MAX_BYTES, RECORD_PLAINTEXT_MAX_BYTES
from pyinfra_agent_protocol._fields import Message, decode_map
from pyinfra_agent_protocol._frames import encode_header, split_frames
from pyinfra_agent_protocol._messages import decode_request, encode_request
from tests.fuzz.reader import Reader, edited
from tests.fuzz.samples import OTHERS, REQUESTS, RESULTS

KINDS: Final[tuple[type[Message], ...]] = tuple(
    dict.fromkeys(type(sample) for sample in (*OTHERS, *REQUESTS, *RESULTS))
)
SAMPLES: Final = (
    *(sample.encode() for sample in (*OTHERS, *REQUESTS, *RESULTS)),
    *(encode_request(sample, 2**20) for sample in REQUESTS),
)

#: A float of four bytes is written as one of eight: a body that was full no longer fits then.
_GROWTH_MAX_BYTES: Final = 512


def fuzz_map(data: bytes) -> None:
    """Any bytes as a map, as a request, and as each kind of message."""
    data = data[:FRAME_BODY_MAX_BYTES]
    try:
        decode_map(data)
    except MessageInvalid:
        for kind in KINDS:
            _assert_refused(kind, data)
        return
    for kind in KINDS:
        _check_message(kind, data)
    try:
        opening = decode_request(data)
    except MessageInvalid:
        return
    if len(data) <= FRAME_BODY_MAX_BYTES - _GROWTH_MAX_BYTES:
        assert decode_request(encode_request(*opening)) == opening


def fuzz_message(data: bytes) -> None:
    """A valid message of each kind, edited."""
    reader = Reader(data)
    fuzz_map(edited(reader.choice(SAMPLES), reader) + reader.rest())


def fuzz_frames(data: bytes) -> None:
    """Any record as frames, and as the answer to a handshake."""
    data = data[:RECORD_PLAINTEXT_MAX_BYTES]
    try:
        frames = split_frames(data)
    except FrameInvalid:
        frames = None
    try:
        decode_answer(data)
        assert frames is not None
    except (FrameInvalid, MessageInvalid):
        pass
    if frames is not None:
        again = b"".join(
            encode_header(kind, stream, channel, len(body)) + body for kind, stream, channel, body in frames
        )
        assert again == data


def _check_message(kind: type[Message], data: bytes) -> None:
    try:
        message = kind.decode(data)
    except MessageInvalid:
        return
    if len(data) <= FRAME_BODY_MAX_BYTES - _GROWTH_MAX_BYTES:
        # Compared as bytes, because a NaN among the facts of a stat or an info does not equal itself.
        encoded = message.encode()
        assert kind.decode(encoded).encode() == encoded


def _assert_refused(kind: type[Message], data: bytes) -> None:
    try:
        kind.decode(data)
    except MessageInvalid:
        return
    raise AssertionError(f"{kind.__name__} takes what is no map")
