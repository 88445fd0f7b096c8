"""Frames: what is encoded can be split, and a damaged record is refused whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinfra_agent_protocol._constants import FRAME_BODY_MAX_BYTES, FRAME_HEADER_BYTES, RECORD_PLAINTEXT_MAX_BYTES
from pyinfra_agent_protocol._errors import FrameInvalid, LocalProtocolError
from pyinfra_agent_protocol._frames import (
    NUMBERED,
    Frame,
    FrameType,
    decode_counter,
    encode_counter,
    encode_header,
    split_frames,
)
from tests.protocol.helpers import reproducible

CHANNELS = st.integers(0, 2**32 - 1)
BODIES = st.binary(max_size=40)


@st.composite
def any_frame(draw):
    kind = draw(st.sampled_from(FrameType))
    stream = draw(st.integers(0, 1)) if kind is FrameType.DATA else 0
    return Frame(kind, stream, draw(CHANNELS), draw(BODIES))


def encode(frames):
    return b"".join(
        encode_header(frame.kind, frame.stream, frame.channel, len(frame.body)) + frame.body for frame in frames
    )


@reproducible(200)
@given(st.lists(any_frame(), max_size=6))
def test_split_frames_returns_what_was_encoded(frames):
    assert split_frames(encode(frames)) == frames


@reproducible(100)
@given(st.lists(any_frame(), min_size=1, max_size=4), st.data())
def test_split_frames_refuses_a_record_cut_inside_a_frame(frames, data):
    """A record cut anywhere but between two frames is refused."""
    record = encode(frames)
    ends = {len(encode(frames[:count])) for count in range(len(frames) + 1)}
    at = data.draw(st.integers(1, len(record) - 1).filter(lambda at: at not in ends))
    with pytest.raises(FrameInvalid):
        split_frames(record[:at])


@reproducible(300)
@given(st.binary(max_size=64))
def test_split_frames_accepts_or_refuses_any_bytes(record):
    try:
        frames = split_frames(record)
    except FrameInvalid:
        return
    assert encode(frames) == record


def test_every_number_that_is_no_type_is_refused():
    known = {int(kind) for kind in FrameType}
    for number in set(range(256)) - known:
        with pytest.raises(FrameInvalid, match=f"type {number} is unknown"):
            split_frames(bytes([number, 0, 0, 0, 0, 0, 0, 0]))


@pytest.mark.parametrize("kind", FrameType)
def test_only_data_has_a_second_stream(kind):
    record = bytes([kind, 1, 0, 0, 0, 1, 0, 0])
    if kind is FrameType.DATA:
        assert split_frames(record) == [Frame(kind, 1, 1, b"")]
    else:
        with pytest.raises(FrameInvalid, match=f"stream 1 in a {kind.name} frame"):
            split_frames(record)


def test_no_frame_has_a_third_stream():
    with pytest.raises(FrameInvalid, match="stream 2"):
        split_frames(bytes([FrameType.DATA, 2, 0, 0, 0, 1, 0, 0]))


def test_header_is_type_stream_channel_length_in_network_order():
    assert encode_header(FrameType.DATA, 1, 0x01020304, 0x0506) == bytes([2, 1, 1, 2, 3, 4, 5, 6])


def test_longest_frame_fills_a_record_and_a_longer_one_is_refused():
    header = encode_header(FrameType.DATA, 0, 1, FRAME_BODY_MAX_BYTES)
    assert len(header) + FRAME_BODY_MAX_BYTES == RECORD_PLAINTEXT_MAX_BYTES
    with pytest.raises(LocalProtocolError, match="does not fit a record"):
        encode_header(FrameType.DATA, 0, 1, FRAME_BODY_MAX_BYTES + 1)


def test_empty_record_holds_no_frame():
    assert split_frames(b"") == []


@reproducible(200)
@given(st.lists(any_frame(), max_size=6))
def test_split_frames_returns_the_same_of_a_bytearray(frames):
    assert split_frames(bytearray(encode(frames))) == frames


def test_large_body_is_the_rest_of_its_record():
    """It is not copied, and nothing else of the record is alive with it."""
    record = bytearray(encode([Frame(FrameType.ACK, 0, 0, bytes(8)), Frame(FrameType.DATA, 1, 7, b"d" * 65_000)]))
    ack, data = split_frames(record)
    assert data == Frame(FrameType.DATA, 1, 7, b"d" * 65_000)
    assert data.body is record
    assert ack.body == bytes(8)


@pytest.mark.parametrize(
    "frames",
    [
        [Frame(FrameType.PING, 0, 0, bytes(40_000)), Frame(FrameType.DATA, 0, 1, b"d")],
        [Frame(FrameType.DATA, 0, 1, b"d"), Frame(FrameType.PING, 0, 0, bytes(40_000))],
        [Frame(FrameType.DATA, 0, 1, b"d" * 32_750), Frame(FrameType.DATA, 0, 2, b"d" * 32_750)],
    ],
    ids=["last", "first", "two halves"],
)
def test_small_body_does_not_keep_its_record(frames):
    """A peer is charged for a byte that waits, and must not make us hold 64 KiB for it."""
    split = split_frames(bytearray(encode(frames)))
    assert split == frames
    for frame in split:
        if frame.kind is FrameType.DATA:
            held = frame.body.__alloc__() if isinstance(frame.body, bytearray) else len(frame.body)
            assert held <= 2 * len(frame.body) + 64


@pytest.mark.parametrize("kind", [FrameType.OPEN, FrameType.RESULT, FrameType.GOODBYE])
def test_only_data_is_a_bytearray(kind):
    """What is unpacked becomes dictionaries' keys and the like."""
    (frame,) = split_frames(bytearray(encode([Frame(kind, 0, 1, b"m" * 60_000)])))
    assert type(frame.body) is bytes


@given(st.integers(0, 2**64 - 1))
@reproducible(50)
def test_counter_decodes_to_what_was_encoded(value):
    assert decode_counter(Frame(FrameType.ACK, 0, 0, encode_counter(value))) == value


@pytest.mark.parametrize("length", [0, 7, 9])
def test_counter_of_another_length_is_refused(length):
    with pytest.raises(FrameInvalid, match=f"CREDIT frame of {length} bytes instead of 8"):
        decode_counter(Frame(FrameType.CREDIT, 0, 1, bytes(length)))


def test_numbered_frames_are_those_of_a_channel():
    """Everything below 16 is numbered, everything else is about one link."""
    assert {kind for kind in FrameType if kind < 16} == NUMBERED
    assert FRAME_HEADER_BYTES == 8
